"""A run's metrics as charts: what is drawn, not how. Pure but for reading.

A chart has a section, a title, what its numbers are, and series of points with, where known, an interval each. The same
charts of several runs are laid over each other, so a series also says whose it is.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from k2rl.critic.metrics import BINS
from k2rl.intervals import wilson
from k2rl.report.reading import Row, RunFiles

POINTS = 400
"""Of a series at most; means over neighbours beyond."""
BARS = 60
PHASES = ("rollout", "judge", "score", "train", "critic", "sync")
_WINDOW = 5
"""Iterations whose judged pairs are taken together."""


@dataclass
class Series:
    """Points in the order of x; `low` and `high` bound each, or are empty. `run` is the run's place among several."""

    name: str
    x: list[float]
    y: list[float | None]
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)
    run: int = 0
    dashed: bool = False


@dataclass
class Chart:
    """`kind`: `line` over iterations, `bars` stacked over iterations, or `points` of anything over `x_title`. `share`:
    its numbers lie in [0, 1]."""

    section: str
    title: str
    unit: str
    series: list[Series]
    kind: str = "line"
    x_title: str = "iteration"
    share: bool = False
    note: str = ""


def charts(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """All charts that have something in them, in the page's order."""
    found: dict[tuple[str, str], Chart] = {}
    for number, run in enumerate(runs):
        for chart in _of(run):
            for series in chart.series:
                series.run = number
            known = found.setdefault((chart.section, chart.title), chart)
            if known is not chart:
                known.series += chart.series
    return [asdict(chart) for chart in found.values()]


def _of(run: RunFiles) -> Iterable[Chart]:
    yield from (chart for chart in _all(run) if any(y is not None for s in chart.series for y in s.y))


def _all(run: RunFiles) -> Iterable[Chart]:
    for env in run.envs:
        yield Chart(
            "Learning",
            f"{env}: training",
            "mean over the iteration's rollouts",
            _lines(run, {"reward": f"reward/{env}", "right": f"success/{env}"}),
        )
    for env in run.envs:
        yield Chart(
            "Learning",
            f"{env}: held-out pass@1",
            "share of tasks, with its 95 % interval",
            _held_out(run, env),
            share=True,
        )
    for env in run.envs:
        lengths = _lines(run, {"tokens": f"tokens/{env}"})
        if (budget := run.recipe["envs"][env].get("budget", {}).get("tokens")) is not None:
            ends = [float(run.iterations[0]), float(run.iterations[-1])]
            lengths.append(Series("budget", ends, [float(budget)] * 2, dashed=True))
        yield Chart("Length", f"{env}: length against budget", "tokens of a response, mean", lengths)
    yield Chart(
        "Length",
        "cut at the budget",
        "share of rollouts",
        _lines(run, {env: f"budget_hit/{env}" for env in run.envs}),
        share=True,
    )
    yield Chart("Length", "sampling temperature", "", _lines(run, {env: f"temperature/{env}" for env in run.envs}))
    for key in sorted({k for row in run.rows for k in row if k.startswith(("loss/", "ptx/"))} | {"critic/loss"}):
        yield Chart("Losses", key, "mean over the iteration's updates", _lines(run, {key: key}))
    yield Chart("Losses", "gradient norm", "", _lines(run, {"policy": "train/grad_norm", "critic": "critic/grad_norm"}))
    yield Chart("Losses", "learning rate", "", _lines(run, {"policy": "train/lr"}))
    yield from _judge(run)
    yield Chart(
        "Time",
        "where an iteration's time goes",
        "seconds",
        [_thinned(phase, run.rows, f"time/{phase}", BARS) for phase in PHASES],
        kind="bars",
    )
    yield Chart(
        "Time", "tokens sampled", "tokens/s of the whole iteration", _lines(run, {"tokens/s": "perf/tokens_per_s"})
    )
    errors = sorted({k for row in run.rows for k in row if k.startswith("errors/")})
    happened = [key for key in errors if any(row.get(key) for row in run.rows)]
    yield Chart("Errors", "errors by kind", "count", _lines(run, {k.split("/", 1)[1]: k for k in happened}))


def _judge(run: RunFiles) -> Iterable[Chart]:
    sources = sorted(
        {k.removeprefix("critic/pairs/") for row in run.rows for k in row if k.startswith("critic/pairs/")}
    )
    for source in sources:
        env = source.split("/")[0]
        known = [
            _thinned("judge", run.rows, f"critic/accuracy/{source}", bounds=f"critic/accuracy_{{}}/{source}"),
            _thinned("always the longer", run.rows, f"critic/longer/{source}"),
            _thinned("always the shorter", run.rows, f"critic/shorter/{source}"),
        ]
        if source.endswith("/degradation"):
            known.append(_thinned("what the gate asks for", run.rows, f"critic/baseline/{env}"))
        for series in known[1:]:
            series.dashed = True
        yield Chart("Judge", f"{source}: accuracy", "share of known pairs, with its 95 % interval", known, share=True)
    for env in run.envs:
        yield Chart(
            "Judge",
            f"{env}: trust weight",
            "what its advantages are multiplied by",
            _lines(run, {"weight": f"critic/weight/{env}"}),
            share=True,
        )
    for name, title in (("order_agreement", "both orders agree"), ("ece", "calibration error (ECE)")):
        yield Chart(
            "Judge", title, "share of known pairs", _lines(run, {s: f"critic/{name}/{s}" for s in sources}), share=True
        )
    judged = {iteration: rows for iteration in run.iterations if (rows := run.kept("judged", iteration))}
    if judged:
        yield _reliability(judged)
        yield _length_bias(judged)


def _reliability(judged: Mapping[int, Sequence[Row]]) -> Chart:
    """Confidence against accuracy on pairs whose better response was known, early and late in the run."""
    numbers = sorted(judged)
    third = max(len(numbers) // 3, 1)
    spans = {f"iterations {part[0]} to {part[-1]}": part for part in (numbers[:third], numbers[-third:])}
    series = [Series("perfectly calibrated", [0.5, 1.0], [0.5, 1.0], dashed=True)]
    for name, part in spans.items():
        bins = defaultdict[int, list[tuple[float, float]]](list)
        for row in (row for iteration in part for row in judged[iteration]):
            p = _p(row)
            confidence = max(p, 1 - p)
            right = 1.0 if p > 0.5 else 0.5 if p == 0.5 else 0.0
            bins[min(int((confidence - 0.5) * 2 * BINS), BINS - 1)].append((confidence, right))
        own = Series(name, [], [])
        for _, cases in sorted(bins.items()):
            share = sum(right for _, right in cases) / len(cases)
            low, high = wilson(share, len(cases))
            own.x.append(sum(confidence for confidence, _ in cases) / len(cases))
            own.y.append(share)
            own.low.append(low)
            own.high.append(high)
        series.append(own)
    return Chart(
        "Judge",
        "reliability: how often it is right when it is so sure",
        "share right, with its 95 % interval",
        series,
        kind="points",
        x_title="confidence, max(P, 1 - P)",
        share=True,
    )


def _length_bias(judged: Mapping[int, Sequence[Row]]) -> Chart:
    """The share in which the longer of two is chosen, less the share in which it is the better one."""
    by_source = defaultdict[str, dict[int, list[float]]](dict)
    for iteration, rows in judged.items():
        for row in rows:
            better, worse = row["lengths"]
            if better != worse:
                p = _p(row)
                chosen = 0.5 if p == 0.5 else float((p > 0.5) == (better > worse))
                own = by_source[f"{row['env']}/{row['source']}"]
                own.setdefault(iteration, []).append(chosen - float(better > worse))
    series = []
    for source, found in sorted(by_source.items()):
        numbers = sorted(found)
        parts = [numbers[at : at + _WINDOW] for at in range(0, len(numbers), _WINDOW)]
        cases = [[x for iteration in part for x in found[iteration]] for part in parts]
        series.append(Series(source, [float(part[-1]) for part in parts], [sum(own) / len(own) for own in cases]))
    return Chart(
        "Judge",
        "length bias",
        f"share choosing the longer response less share where it is the better one; {_WINDOW} iterations each",
        series,
    )


def _p(row: Row) -> float:
    """P(the better response is better), over both orders, without its last digits."""
    return round(sum(row["judgement"]) / 2, 12)


def _held_out(run: RunFiles, env: str) -> list[Series]:
    """Before, during and after the run."""
    summary = run.summary or {}
    n = run.recipe.get("run", {}).get("eval_tasks", 0)
    found = {float(row["iteration"]): (row[key], n) for row in run.rows if (key := f"eval/{env}/pass@1") in row}
    for when, x in (("eval_before", 0.0), ("eval_after", float(run.iterations[-1]))):
        if env in summary.get(when, {}):
            found[x] = (summary[when][env]["pass@1"], summary[when][env]["n"])
    series = Series("pass@1", [], [])
    for x, (share, tasks) in sorted(found.items()):
        low, high = wilson(share, tasks) if tasks else (None, None)
        series.x.append(x)
        series.y.append(share)
        series.low.append(low)
        series.high.append(high)
    return [series]


def _lines(run: RunFiles, keys: Mapping[str, str]) -> list[Series]:
    """By the name of a series, the key it is of; those that never had a value are left out."""
    found = [_thinned(name, run.rows, key) for name, key in keys.items()]
    return [series for series in found if any(y is not None for y in series.y)]


def _thinned(name: str, rows: Sequence[Row], key: str, most: int = POINTS, bounds: str = "") -> Series:
    """A key over iterations, neighbours taken together where there are more than `most`."""
    size = math.ceil(len(rows) / most)
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]

    def column(key: str) -> list[float | None]:
        values = [[row[key] for row in part if key in row] for part in parts]
        return [sum(own) / len(own) if own else None for own in values]

    series = Series(name, [sum(r["iteration"] for r in part) / len(part) for part in parts], column(key))
    if bounds:
        series.low, series.high = column(bounds.format("low")), column(bounds.format("high"))
    return series
