"""One page of HTML that shows runs: opens offline, loads nothing, and shows what others wrote as text."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from k2rl.errors import UserError
from k2rl.progress import console
from k2rl.report import browsing
from k2rl.report.charts import charts
from k2rl.report.reading import RunFiles
from k2rl.runlog import writing

SIZE = 6_000_000
"""Bytes of JSON that the rollouts of all runs take at most."""
_ASSETS = Path(__file__).parents[1] / "_assets" / "report"
_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


def write(folders: Sequence[Path], out: Path) -> Path:
    """The page of one run, or of several beside each other.

    Raises:
        UserError: there is no run in one of the folders, or `out` can't be written.
        RunError: the disk is full.
    """
    runs = [RunFiles.of(folder) for folder in folders]
    text = render(runs)
    draft = out.with_name(f".draft-{out.name}")
    try:
        with writing(out):
            draft.write_text(text, encoding="ascii")
            draft.replace(out)
    except OSError as error:
        raise UserError(f"{out} can't be written: {error.strerror}; choose another --out") from None
    return out


def at_the_end(folder: Path, quiet: bool) -> None:
    """The page of a run that has just ended, in its folder. It is no reason to fail, whatever is wrong with it."""
    try:
        out = write([folder], folder / "report.html")
        if not quiet:
            console.print(f"report: {out}", markup=False, soft_wrap=True)
    except Exception as error:
        console.print(f"no report: {type(error).__name__}: {error}; again: k2rl report {folder}", markup=False)


def render(runs: Sequence[RunFiles]) -> str:
    """The page, all of it ASCII."""
    data = {
        "runs": [_about(run) for run in runs],
        "charts": charts(runs),
        "groups": [
            {"run": number, **group}
            for number, run in enumerate(runs)
            for group in browsing.sample(run, SIZE // len(runs), browsing.decoder(run))
        ],
    }
    title = html.escape("k2rl: " + ", ".join(run.name for run in runs))
    parts = {
        "TITLE": title.encode("ascii", "xmlcharrefreplace").decode(),
        "STYLE": _asset("report.css"),
        # What is said in rollouts ends no script, whatever it says.
        "DATA": json.dumps(data, separators=(",", ":")).translate(_ESCAPES),
        "LIBRARY": _asset("chart.umd.min.js"),
        "SCRIPT": _asset("report.js"),
    }
    page = _asset("report.html")
    pieces = page.split("@@")
    # Every second piece is a name: what is put in is not looked through for names.
    return "".join(parts[piece] if n % 2 else piece for n, piece in enumerate(pieces))


def _asset(name: str) -> str:
    text = (_ASSETS / name).read_text(encoding="utf-8")
    return text if text.isascii() else "".join(c if c.isascii() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    """As JavaScript writes it, which the library's strings are."""
    return json.dumps(character)[1:-1]


def _about(run: RunFiles) -> dict[str, Any]:
    """What a run was and how it ended."""
    summary: Mapping[str, Any] = run.summary or {}
    last, planned = run.iterations[-1], run.recipe["run"]["iterations"]
    wall = summary.get("wall_s") or sum(row.get("time/iteration", 0.0) for row in run.rows)
    keys = ("pass@1", "ci95", "n", "tokens")
    return {
        "name": run.name,
        "state": run.state,
        "iterations": last,
        "planned": planned,
        "seconds": round(wall),
        "seed": run.recipe.get("seed"),
        "model": str(run.recipe["model"]["path"]),
        "objective": str(run.recipe.get("objective", {}).get("name", "")),
        "critic": bool(run.recipe.get("critic", {}).get("enabled")),
        "alarms": list(summary.get("alarms", [])),
        "left_out": dict(summary.get("left_out", {})),
        "results": {
            env: {when: {k: summary[w][env][k] for k in keys if k in summary[w][env]} for when, w in _WHEN.items()}
            for env in summary.get("eval_after", {})
            if env in summary.get("eval_before", {})
        },
        "recipe": yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=False),
    }


_WHEN = {"before": "eval_before", "after": "eval_after"}
