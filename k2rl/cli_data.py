"""`k2rl data`: look at a file of rows, mend it, and say how hard its rows are. See docs/data.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from k2rl import assets
from k2rl.cli_shared import JsonFlag, arguments, print_json, print_table
from k2rl.errors import RunError, UserError

app = typer.Typer(help="Look at a file of rows, mend it, tag and filter it.", no_args_is_help=True)

Source = Annotated[str, typer.Argument(metavar="FILE", help=".jsonl, .json, .parquet, or hf:REPO[:CONFIG][@SPLIT].")]
Out = Annotated[Path, typer.Option(help="A new .jsonl, .json or .parquet.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Prompt = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Which column is the prompt (a+b: two)  [default: detected]"),
]
Model = Annotated[str | None, typer.Option(help="Whose tokens count: nano, a transformers folder, a hub id.")]


@app.command()
def inspect(
    file: Source,
    prompt: Prompt = None,
    model: Model = None,
    examples: Annotated[int, typer.Option(min=0, help="Rows to show.")] = 2,
    as_json: JsonFlag = False,
) -> None:
    """Columns, types, lengths, duplicates, and the field map that fits."""
    from k2rl import datatools, tables

    report = datatools.inspect(tables.read(file, prompt), examples, _tokens(model))
    if as_json:
        print_json(report)
        return
    print(f"{file}: {report['rows']} rows")
    columns = [
        {
            "column": name,
            "filled": c["filled"],
            "types": ", ".join(c["types"]),
            "distinct": c["distinct"],
            "min / median / max": _spread(c.get("characters") or c.get("values")),
        }
        for name, c in report["columns"].items()
    ]
    print_table(columns, list(columns[0]))
    for kind, schema in report["schemas"].items():
        print(f"fits {kind} as {schema['name']}: fields {json.dumps(schema['fields'])}")
    if not report["schemas"]:
        print("fits no known schema: give an environment its args.fields")
    if "prompts" in report:
        found = report["prompts"]
        print(f"prompts ({found['column']}): {_spread(found['characters'])} characters (min / median / max)")
        if "tokens" in found:
            print(f"  {_spread(found['tokens'])} tokens of {model}")
        same = found["duplicates"]
        print(f"  {same['exact']} exact duplicates, {same['normalised']} more but for case and spacing")
    for row in report["examples"]:
        print(_shortened(row))


@app.command()
def dedup(
    file: Source,
    out: Annotated[Path | None, typer.Option(help="A new .jsonl, .json or .parquet  [default: report only]")] = None,
    near: Annotated[
        float | None, typer.Option(help="Also rows whose 3-word shingles are this similar, in [0.5, 1].")
    ] = None,
    against: Annotated[str | None, typer.Option(metavar="FILE", help="Also drop what is in this (test) file.")] = None,
    prompt: Prompt = None,
    force: Force = False,
    as_json: JsonFlag = False,
) -> None:
    """Keep the first of rows that are the same; with --against, find training rows that are in a test file."""
    from k2rl import datatools, tables
    from k2rl.duplicates import LEAST_NEAR

    if near is not None and not LEAST_NEAR <= near <= 1:
        raise UserError(f"--near is {near:g}: it lies in [{LEAST_NEAR:g}, 1]")
    if out is not None:
        tables.check_output(out, file, *([against] if against else []), force=force)
    held = tables.read(against, prompt) if against is not None else None
    found = datatools.dedup(tables.read(file, prompt), held, near)
    if out is not None and not found.kept:
        raise UserError(f"every row of {file} is in {against}: no row is left to write")
    if out is not None:
        tables.write(found.kept, out)
    if as_json:
        print_json(found.report)
        return
    report = found.report
    same = report["duplicates"]
    print(
        f"{file}: {report['rows']} rows by {report['prompt']}; {same['exact']} exact, {same['normalised']} normalised "
        f"and {same['near']} near duplicates, {report['answer_differs']} of them with something else as their answer"
    )
    pairs = list(report["pairs"])
    if against is not None:
        hits = report["against"]["contaminated"]
        print(f"also in {against}: {hits['exact']} exact, {hits['normalised']} normalised, {hits['near']} near")
        pairs += report["against"]["pairs"]
    _some(pairs)
    where = f"written to {out}" if out is not None else "nothing written without --out"
    print(f"{report['kept']} rows left, {where}")


@app.command()
def check(
    file: Source,
    env: Annotated[str, typer.Option(help="Whose verifier: name, module:Class or file.py:Class.")] = "math",
    arg: Annotated[
        list[str] | None, typer.Option(metavar="key=value", help="An argument of the env; may repeat.")
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option(metavar="name=COLUMN", help="Which column holds what; may repeat.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="The schema of the rows  [default: detected]")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Does the verifier accept every row's gold answer? Exit code 1 if not."""
    from k2rl.goldcheck import check as run

    for item in field or []:
        if "=" not in item:
            raise UserError(f"--field {item!r}: write name=COLUMN, such as --field prompt=problem")
    fields = {name: column for name, _, column in (item.partition("=") for item in field or [])}
    report, _ = run(file, env, arguments(arg or []), fields, format, quiet=as_json)
    if as_json:
        print_json(report)
    else:
        _some(report["failures"])
        skipped = f", {report['no_gold']} without a gold answer" if report["no_gold"] else ""
        print(f"{file} ({report['schema']}): {report['ok']} of {report['rows']} gold answers are accepted{skipped}")
    if report["failed"]:
        raise RunError(f"{env} does not accept the gold answers of {report['failed']} rows of {file}")


@app.command()
def tag(
    file: Source,
    measured: Annotated[Path, typer.Option(help="A file of `k2rl measure`.")],
    out: Out,
    env: Annotated[str | None, typer.Option(help="Which of its environments the rows are of.")] = None,
    force: Force = False,
    as_json: JsonFlag = False,
) -> None:
    """Write each row's measured pass rate into a column pass_rate."""
    from k2rl import datatools, tables

    tables.check_output(out, file, measured, force=force)
    rows, report = datatools.tag(tables.read(file), measured, env)
    tables.write(rows, out)
    if as_json:
        print_json(report)
    else:
        print(f"{report['tagged']} of {report['rows']} rows have a pass rate, written to {out}")


@app.command("filter")
def filter_rows(
    file: Source,
    out: Out,
    pass_rate: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="Rows tagged with a rate in this band.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Rows with this value; may repeat.")
    ] = None,
    min_chars: Annotated[int | None, typer.Option(min=0, help="The least length of a prompt.")] = None,
    max_chars: Annotated[int | None, typer.Option(min=0, help="The greatest length of a prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The same in tokens of --model.")] = None,
    model: Model = None,
    prompt: Prompt = None,
    force: Force = False,
    as_json: JsonFlag = False,
) -> None:
    """Keep the rows that pass every given test."""
    from k2rl import datatools, tables

    if (max_tokens is None) != (model is None):
        raise UserError("--max-tokens and --model belong together")
    if not (where or pass_rate or max_tokens is not None or min_chars is not None or max_chars is not None):
        raise UserError("nothing to filter by: give --pass-rate, --where, --min-chars, --max-chars or --max-tokens")
    if pass_rate and not 0 <= pass_rate[0] <= pass_rate[1] <= 1:
        raise UserError(f"--pass-rate {pass_rate[0]:g} {pass_rate[1]:g}: give LOW HIGH, each in [0, 1]")
    wrong = next((item for item in where or [] if "=" not in item), None)
    if wrong is not None:
        raise UserError(f"--where {wrong!r}: write COLUMN=VALUE, such as --where 'level=Level 5'")
    tables.check_output(out, file, force=force)
    table = tables.read(file, prompt)
    kept, left = datatools.keep(
        table,
        pass_rate=pass_rate,
        where={column: value for column, _, value in (item.partition("=") for item in where or [])},
        characters=(min_chars, max_chars),
        most_tokens=max_tokens,
        tokens=_tokens(model),
    )
    tables.write(kept, out)
    if as_json:
        print_json({"file": file, "rows": len(table.records), "kept": len(kept), "left_out": left})
        return
    print(f"kept {len(kept)} of {len(table.records)} rows, written to {out}")
    for name, count in left.items():
        print(f"  {name} left out {count}")


def _tokens(model: str | None) -> Callable[[str], int] | None:
    """How many tokens of the model a text has, without a template."""
    if model is None:
        return None
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(assets.NANO if model == "nano" else Path(model).expanduser())
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model}: no tokenizer there: {str(error).strip().splitlines()[0]}") from None
    return lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


def _spread(found: Mapping[str, float] | None) -> str:
    return " / ".join(f"{found[key]:g}" for key in ("min", "median", "max")) if found else ""


def _shortened(row: Mapping[str, Any], most: int = 160) -> str:
    short = {k: v[:most] + "…" if isinstance(v, str) and len(v) > most else v for k, v in row.items()}
    return json.dumps(short, ensure_ascii=True, default=str)[: 4 * most]


def _some(rows: Sequence[Mapping[str, object]], most: int = 20) -> None:
    if rows:
        print_table(rows[:most], list(rows[0]))
    if len(rows) > most:
        print(f"{len(rows) - most} more; --json lists all")
