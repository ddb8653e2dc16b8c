"""What `k2rl data` does with a file of rows: look at it, drop duplicates, tag with pass rates, filter.

Rows go through as they are, every column kept; only the prompt is looked for, by the schemas of `schemas.py` or the
column that the user names. Outputs are written beside their place and renamed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from k2rl import difficulty, plugins, schemas
from k2rl.duplicates import Twin, twins
from k2rl.errors import UserError, did_you_mean
from k2rl.records import KINDS, is_hub, records
from k2rl.rows import Row, mapping, row_of
from k2rl.schemas import ReadsRows, Schema
from k2rl.types import content_hash

RATE = "pass_rate"
"""The column that `tag` writes and `filter` reads."""


@dataclass(frozen=True)
class Table:
    """The rows of a file as they are, their places, and how they are read."""

    source: str
    places: list[str]
    records: list[Mapping[str, Any]]
    schema: Schema | None

    def rows(self) -> list[Row]:
        """The rows under our names.

        Raises:
            UserError: nobody knows which column is the prompt, or a row lacks a column.
        """
        if self.schema is None:
            columns = list(dict.fromkeys(name for record in self.records for name in record))
            raise UserError(
                f"{self.source}: which column is the prompt? Give --prompt COLUMN; it has {', '.join(columns)}"
            )
        return [
            row_of(place, record, self.schema.fields, self.schema.optional)
            for place, record in zip(self.places, self.records, strict=True)
        ]


def read(source: str, prompt: str | None = None) -> Table:
    """A file's rows; `prompt` names the column (or `a+b`) of their prompts, where no schema is to be taken.

    Raises:
        UserError: as `records`, a row that is no object.
    """
    found = [(place, mapping(place, record)) for place, record in records(source)]
    schema = Schema("given", {"prompt": prompt}) if prompt else next(iter(fitting(source).values()), None)
    return Table(source, [place for place, _ in found], [record for _, record in found], schema)


def fitting(source: str) -> dict[str, Schema]:
    """Per kind of task, the schema that a file has, if any."""
    row = schemas.first_values(source)
    first = {kind: next((s for s in schemas.known(kind) if s.fits(row)), None) for kind in schemas.kinds()}
    return {kind: schema for kind, schema in first.items() if schema is not None}


def inspect(table: Table, examples: int, tokens: Callable[[str], int] | None) -> dict[str, Any]:
    """Columns with what they hold, suggested field maps, lengths, duplicates, examples."""
    names = list(dict.fromkeys(name for record in table.records for name in record))
    found = fitting(table.source)
    report: dict[str, Any] = {
        "file": table.source,
        "rows": len(table.records),
        "columns": {name: _column([r[name] for r in table.records if r.get(name) is not None]) for name in names},
        "schemas": {kind: {"name": s.name, "fields": dict(s.fields)} for kind, s in found.items()},
        "examples": [dict(r) for r in table.records[:examples]],
    }
    if table.schema is not None:
        prompts = [str(row.prompt) for row in table.rows()]
        counts = Counter(twin.how for twin in twins(prompts))
        report["prompts"] = {
            "column": table.schema.fields["prompt"],
            "characters": spread([len(p) for p in prompts]),
            **({"tokens": spread([tokens(p) for p in prompts])} if tokens else {}),
            "duplicates": {"exact": counts["exact"], "normalised": counts["normalised"]},
        }
    return report


def _column(values: Sequence[Any]) -> dict[str, Any]:
    kinds = Counter(type(v).__name__ for v in values)
    found: dict[str, Any] = {"filled": len(values), "types": dict(kinds)}
    found["distinct"] = len({content_hash(repr(v)) for v in values})
    if set(kinds) == {"str"}:
        found["characters"] = spread([len(v) for v in values])
    elif kinds and set(kinds) <= {"int", "float"}:
        found["values"] = spread(values)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """The least, the middle and the greatest of them."""
    return {"min": min(values), "median": median(values), "max": max(values)}


@dataclass(frozen=True)
class Deduplicated:
    """What is left, and why the rest is not: twins among the rows, and twins in another file."""

    kept: list[Mapping[str, Any]]
    twins: list[Twin]
    contaminated: list[Twin]
    report: dict[str, Any]


def dedup(table: Table, against: Table | None, near: float | None) -> Deduplicated:
    """Keep the first of rows that are the same, and none that is also in `against`.

    Rows are the same if their prompts are, and whatever else their schema requires but for the answer: tests, names.
    """
    rows, held = table.rows(), against.rows() if against is not None else []
    if against is not None and table.schema and against.schema and _beside(table.schema) != _beside(against.schema):
        raise UserError(f"{table.source} ({table.schema}) and {against.source} ({against.schema}) can't be compared")
    everything = [*held, *rows]
    beside = [_beside_values(r, table.schema) for r in everything]
    found = twins([r.prompt for r in everything], beside, near, known=len(held))
    contaminated = [t for t in found if t.of < len(held)]
    own = [replace(t, at=t.at - len(held), of=t.of - len(held)) for t in found if t.of >= len(held)]
    gone = {t.at - len(held) for t in found}
    differs = sum(rows[t.at].values.get("answer") != rows[t.of].values.get("answer") for t in own)
    report: dict[str, Any] = {
        "file": table.source,
        "prompt": table.schema.fields["prompt"] if table.schema else None,
        "rows": len(rows),
        "kept": len(rows) - len(gone),
        "duplicates": {how: sum(t.how == how for t in own) for how in ("exact", "normalised", "near")},
        "answer_differs": differs,
        "pairs": [_pair(rows[t.at], rows[t.of], t) for t in own],
    }
    if against is not None:
        report["against"] = {
            "file": against.source,
            "rows": len(held),
            "contaminated": {how: sum(t.how == how for t in contaminated) for how in ("exact", "normalised", "near")},
            "pairs": [_pair(everything[t.at], everything[t.of], t) for t in contaminated],
        }
    return Deduplicated([r for n, r in enumerate(table.records) if n not in gone], own, contaminated, report)


def _beside(schema: Schema) -> list[str]:
    return sorted(schema.required.keys() - {"prompt", "answer"})


def _beside_values(row: Row, schema: Schema | None) -> str | None:
    names = _beside(schema) if schema else []
    return content_hash(*[repr(row.values[name]) for name in names]) if names else None


def short(place: str) -> str:
    """A place without its file: `line 3`."""
    return place.rpartition(", ")[2]


def _pair(row: Row, other: Row, twin: Twin) -> dict[str, Any]:
    return {"row": short(row.place), "of": short(other.place), "how": twin.how, "similarity": round(twin.similarity, 4)}


def tag(table: Table, measured: Path, env: str | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows with their pass rates (None where not measured) in a column `pass_rate`, and a report.

    Raises:
        UserError: the file measures several environments and `env` names none, one that reads no rows, or no row.
    """
    spec, name = _measured_env(measured, env)
    rates = difficulty.load(measured, name)
    made = row_reader(plugins.make_env(spec["id"], spec["args"]), spec["id"])
    args = spec["args"]
    schema = schemas.detect(made.row_kind, table.source, args.get("fields"), args.get("format"))
    tagged, known = [], 0
    for place, record in zip(table.places, table.records, strict=True):
        task = replace(made.row_task(row_of(place, record, schema.fields, schema.optional)), env=name)
        rate = rates[task.id].rate if task.id in rates else None
        known += rate is not None
        tagged.append({**record, RATE: rate})
    if not known:
        raise UserError(
            f"none of the {len(tagged)} rows of {table.source} is among the {len(rates)} tasks that {measured} "
            f"measures of env {name}: tag the rows that were measured"
        )
    return tagged, {"file": table.source, "env": name, "rows": len(tagged), "tagged": known}


def _measured_env(path: Path, env: str | None) -> tuple[dict[str, Any], str]:
    """The environment of a measured file, as `k2rl measure` wrote it down."""
    report = difficulty.report_of(path, f"--measured {path}")
    names = list(report["envs"])
    if env is None and len(names) != 1:
        raise UserError(f"{path} measures the environments {', '.join(names)}: say which with --env")
    name = env or names[0]
    if name not in names:
        raise UserError(f"{path} measures no env {name}{did_you_mean(name, names)}: it has {', '.join(names)}")
    found = report["envs"][name]
    if "id" not in found:
        raise UserError(f"{path} does not say how env {name} was made: make it with `k2rl measure RECIPE`")
    return found, name


def row_reader(env: object, name: str) -> ReadsRows:
    """The environment, if it makes tasks of rows. Raises `UserError` if not."""
    if not isinstance(env, ReadsRows):
        raise UserError(f"env {name} reads no rows: it needs row_kind and row_task(row), as k2rl_envs.math_env has")
    return env


def keep(
    table: Table,
    *,
    pass_rate: tuple[float, float] | None = None,
    where: Mapping[str, str] | None = None,
    characters: tuple[int | None, int | None] = (None, None),
    most_tokens: int | None = None,
    tokens: Callable[[str], int] | None = None,
) -> tuple[list[Mapping[str, Any]], dict[str, int]]:
    """The rows that pass every test, and how many each test in turn left out.

    Raises:
        UserError: a column that no row has, a pass rate that is no number, or nothing is left.
    """
    left: dict[str, int] = {}
    kept = list(range(len(table.records)))

    def only(name: str, test: Callable[[int], bool]) -> None:
        nonlocal kept
        passing = [n for n in kept if test(n)]
        left[name] = len(kept) - len(passing)
        kept = passing

    names = {name for record in table.records for name in record}
    for column in [*(where or {}), *([RATE] if pass_rate else [])]:
        if column not in names:
            hint = "; `k2rl data tag` writes it" if column == RATE else ""
            raise UserError(f"{table.source} has no column {column!r}{did_you_mean(column, names)}{hint}")
    for column, value in (where or {}).items():
        only(f"{column}={value}", lambda n, c=column, v=value: _text(table.records[n].get(c)) == v)  # type: ignore[misc]
    if pass_rate:
        only(RATE, lambda n: _within(table.records[n].get(RATE), pass_rate, table.places[n]))
    low, high = characters
    prompts = [row.prompt for row in table.rows()] if (low, high, most_tokens) != (None, None, None) else []
    if low is not None:
        only("min_chars", lambda n: len(prompts[n]) >= low)
    if high is not None:
        only("max_chars", lambda n: len(prompts[n]) <= high)
    if most_tokens is not None and tokens is not None:
        only("max_tokens", lambda n: tokens(prompts[n]) <= most_tokens)
    if not kept:
        raise UserError(f"none of the {len(table.records)} rows of {table.source} is left: loosen the filter")
    return [table.records[n] for n in kept], left


def _text(value: object) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _within(rate: object, band: tuple[float, float], place: str) -> bool:
    if rate is None:
        return False
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise UserError(f"{place}, field {RATE!r}: a pass rate is a number, got {rate!r}")
    return band[0] <= rate <= band[1]


def check_output(out: Path, *inputs: str | Path, force: bool = False) -> None:
    """Raise `UserError` for an output that can't be written, or would replace an input or (without `force`) a file."""
    if out.suffix not in KINDS:
        raise UserError(f"--out {out}: can't write {out.suffix or 'a file without suffix'}: use {', '.join(KINDS)}")
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"--out {out}: give a file in a folder that exists")
    for given in inputs:
        if not is_hub(given) and Path(given).expanduser().resolve() == out.resolve():
            raise UserError(f"--out {out} is an input: inputs are never overwritten")
    if out.exists() and not force:
        raise UserError(f"--out {out} exists: choose another, or add --force")


def write(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write rows in the format of the file's name, whole or not at all."""
    draft = out.with_name(f".draft-{out.name}")
    if out.suffix == ".parquet":
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise UserError(f'writing {out} needs pyarrow: pip install "k2rl[parquet]"') from None
        try:
            parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), draft)
        except pyarrow.ArrowException as error:
            raise UserError(f"{out}: these rows make no parquet table: {str(error).splitlines()[0]}") from None
    else:
        lines = [_json(row) for row in rows]
        text = "\n".join(lines) + "\n" if out.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]\n"
        draft.write_text(text, encoding="utf-8")
    os.replace(draft, out)


def _json(row: Mapping[str, Any]) -> str:
    """A row as a line; dates and the like of a parquet file become text."""
    line = json.dumps(row, ensure_ascii=False, default=str)
    has_lone_surrogates = any("\ud800" <= c <= "\udfff" for c in line)
    return json.dumps(row, default=str) if has_lone_surrogates else line
