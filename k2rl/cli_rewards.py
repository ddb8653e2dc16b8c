"""`k2rl eval-rewards`: how far what gives the rewards can be trusted."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import typer

from k2rl import outputs
from k2rl.cli_shared import arguments, print_table
from k2rl.errors import UserError
from k2rl.terminal import shown
from k2rl.types import Status

if TYPE_CHECKING:
    from k2rl.replay import Replayed

app = typer.Typer(help="How far what gives the rewards can be trusted.", no_args_is_help=True)

JsonFile = Annotated[Path, typer.Option("--json", help="Write the report here.")]
RowsOut = Annotated[Path | None, typer.Option(help="Also write the verdict on every row here, as JSONL.")]


Kind = Literal["auto", "judge", "scalar"]
TooLong = Literal["skip", "cut"]
_SHOWN = 400
"""Characters of a text on the screen."""


@app.command("verifier")
def eval_verifier(
    reward: Annotated[str, typer.Option(help="name, module:Class or file.py:Class.")],
    data: Annotated[Path, typer.Option(help="A JSONL of rows whose right verdict is known.")],
    json_file: JsonFile,
    rows_out: RowsOut = None,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="key=value", help="An argument of the reward; may repeat.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads  [default: twice the cores, 8 at most]")] = None,
) -> None:
    """Judge rows whose right verdict is known: agreement, false positives and negatives, errors."""
    from k2rl import eval_rewards

    _check_outputs({"--data": data}, {"--json": json_file, "--rows-out": rows_out})
    report, judged = eval_rewards.evaluate(reward, data, arguments(arg or []), workers=workers)
    _write(report, judged, json_file, rows_out)
    wrong = [j.to_json() for j in judged if not j.agrees]
    if wrong:
        print_table(wrong[:20], ("id", "line", "expected", "status", "detail"))
    if len(wrong) > 20:
        print(f"{len(wrong) - 20} more disagreements{'; --rows-out lists all' if rows_out is None else ''}")
    low, high = report["ci95"]["agreement"]
    print(
        f"{reward} agrees on {100 * report['agreement']:.2f} % of {report['n']} rows "
        f"(95 %: {100 * low:.2f} to {100 * high:.2f}), {report['false_positive']} false positives, "
        f"{report['false_negative']} false negatives, {report['errors']} errors, {report['per_second']:.0f} rows/s"
    )


@app.command("judge")
def eval_judge(
    data: Annotated[str, typer.Option(help="Pairs, or best-of-n rows: .jsonl, .json, .parquet or hf:REPO.")],
    json_file: JsonFile,
    model: Annotated[str | None, typer.Option(help="A transformers folder, a hub id, or nano.")] = None,
    recorded: Annotated[Path | None, typer.Option(help="A JSONL of verdicts, instead of a model.")] = None,
    kind: Annotated[Kind, typer.Option(help="A causal LM that judges, or a reward model that scores.")] = "auto",
    rubric: Annotated[
        list[str] | None, typer.Option(help="What a causal LM judges by: a rubric's name, file or text; may repeat.")
    ] = None,
    reasoning_tokens: Annotated[int, typer.Option(min=0, help="It may first write up to so many tokens.")] = 0,
    too_long: Annotated[
        TooLong, typer.Option(help="What does not fit the model has no verdict, or its responses are cut.")
    ] = "skip",
    rows_out: RowsOut = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it: .html, .svg or .png.")] = None,
    dtype: Annotated[str, typer.Option(help="auto (float32), float32 or bfloat16.")] = "auto",
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the model's own code.")] = False,
) -> None:
    """Have a judge compare responses of which the better one is known: accuracy, calibration, biases."""
    from rich.console import Console

    from k2rl import eval_judge as judging
    from k2rl import judge_plot

    if (model is None) == (recorded is None):
        raise UserError("give --model or --recorded, one of them")
    if recorded is not None and (rubric or reasoning_tokens or kind != "auto" or too_long != "skip"):
        raise UserError("--rubric, --reasoning-tokens, --kind and --too-long are for --model, not for --recorded")
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f"--dtype {dtype}: use auto, float32 or bfloat16")
    inputs = {"--data": Path(data)} | ({"--recorded": recorded} if recorded else {})
    _check_outputs(inputs, {"--json": json_file, "--rows-out": rows_out, "--plot": plot})
    if plot is not None:
        judge_plot.check(plot)
    judge: judging.Judge
    if recorded is not None:
        judge = judging.Recorded(recorded)
    else:
        from k2rl.judges import Asking, load
        from k2rl.recipe import ModelConfig

        config = ModelConfig(path=str(model), dtype=dtype, trust_remote_code=trust_remote_code)
        asking = Asking(tuple(rubric or ()), reasoning_tokens)
        judge = load(config, kind, asking, cut=too_long == "cut")
    report, judged = judging.evaluate(data, judge, name=str(model or recorded))
    _write(report, judged, json_file, rows_out)
    if plot is not None:
        judge_plot.draw(report, plot)
    for table in judging.tables(report):
        Console(width=None if sys.stdout.isatty() else 120).print(table)


@app.command("replay")
def eval_replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, of a run that is over or not.")],
    reward: Annotated[
        str | None,
        typer.Option(help="name, module:Class or file.py:Class  [default: each env's own, by the run's recipe]"),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(help="An env of the run; may repeat  [default: all of the reward's kind]")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
    rows_out: RowsOut = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rollouts per env, from all parts of the run.")] = None,
    arg: Annotated[
        list[str] | None, typer.Option(metavar="key=value", help="An argument of the reward; may repeat.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads  [default: twice the cores, 8 at most]")] = None,
) -> None:
    """Score a run's rollouts again: which past verdicts would a changed verifier turn?"""
    from k2rl import replay

    if arg and reward is None:
        raise UserError("--arg is an argument of the reward: give --reward with it")
    _check_outputs({}, {"--json": json_file, "--rows-out": rows_out})
    report, found = replay.replay(run, reward, arguments(arg or []), env or (), limit=limit, workers=workers)
    _write(report, found, json_file, rows_out)
    _print_replay(report, replay.examples(found, 12))
    if report["all"]["turned"] > 12 and rows_out is None:
        print("--rows-out lists all that turned")


def _print_replay(report: Mapping[str, Any], turned: Sequence[Replayed]) -> None:
    """Tables of statuses before and now, examples, and a line for each env."""
    from k2rl.replay import prompt

    statuses = [s for s in Status if any(s in now for own in report["envs"].values() for now in own["table"].values())]
    rows = [
        {"env": shown(name), "before": before, **{s: now.get(s, "") for s in statuses}}
        for name, own in report["envs"].items()
        for before, now in sorted(own["table"].items(), key=lambda entry: list(Status).index(entry[0]))
    ]
    print_table(rows, ("env", "before", *statuses))
    for one in turned:
        past, now = one.past, one.verdict
        place = f"{shown(past.task.env)}, iteration {past.iteration}, line {past.line}"
        print(f"{place}: {past.verdict.status} -> {now.status}")
        for title, text in (("prompt", prompt(past.task)), ("response", past.response)):
            print(f"  {title:9}{shown(text, _SHOWN)}")
        for title, verdict in (("before", past.verdict), ("now", now)):
            if verdict.detail:
                print(f"  {title:9}{shown(verdict.detail, _SHOWN)}")
    for name, own in report["envs"].items():
        print(f"{shown(name)}: {_replayed(own)}")
    for name, left in report["left_out"].items():
        print(f"{shown(name)}: left out, {left['rollouts']} rollouts: {shown(left['reason'])}")
    for name in report["damaged"]:
        print(f"rollouts/{shown(name)} is damaged: what is whole of it is counted")


def _replayed(own: Mapping[str, Any]) -> str:
    """What became of an environment's verdicts, in a line."""
    if own["share_turned"] is None:
        said = "no verdict to compare"
    else:
        share, low, high = (100 * x for x in (own["share_turned"], *own["ci95"]["share_turned"]))
        said = f"{own['turned']} of {own['n']} verdicts turned, {share:.2f} % (95 %: {low:.2f} to {high:.2f})"
        if own["turned"]:
            said += f": {own['now_correct']} now correct, {own['no_longer_correct']} no longer"
    notes = {
        "{} scores changed beside": own["scores_changed"],
        "{} errors": own["errors"],
        "{} had none before": own["errors_before"],
        "{} cut at their budget, never verified": own["cut"],
        "{} without a response": own["no_response"],
        "{} without a verdict": own["no_verdict"],
    }
    return "; ".join([said, *(note.format(n) for note, n in notes.items() if n)])


class _Row(Protocol):
    def to_json(self) -> dict[str, Any]: ...


def _check_outputs(inputs: Mapping[str, Path], given: Mapping[str, Path | None]) -> None:
    """Refuse, before the work, what can't be written or would overwrite an input or another output."""
    taken = dict(inputs)
    for option, path in given.items():
        if path is not None:
            outputs.check(option, path, taken)
            taken[option] = path


def _write(report: Mapping[str, Any], judged: Sequence[_Row], json_file: Path | None, rows_out: Path | None) -> None:
    if rows_out is not None:
        outputs.write_lines(rows_out, (j.to_json() for j in judged))
    if json_file is not None:
        outputs.write_json(json_file, report)
