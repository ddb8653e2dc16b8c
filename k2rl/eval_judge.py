"""How far a judge can be trusted: its verdicts on pairs of responses of which the better one is known.

The judge is a causal LM in the judging role, a scalar reward model, or a file of recorded verdicts; rows and recorded
verdicts are those of `preferences.py`, the metrics those of `critic/metrics.py`. A comparison that does not fit the
model's context, or whose verdict can't be read, has no verdict: it is counted, never guessed, and no metric has it.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from k2rl.critic import metrics
from k2rl.critic.metrics import Labelled
from k2rl.critic.records import Judgement
from k2rl.intervals import wilson
from k2rl.preferences import Contest, Row, contests, read, read_recorded
from k2rl.types import SCHEMA_VERSION

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")
_LENGTH_BINS = 5


@dataclass(frozen=True)
class Judged:
    """A contest and what the judge made of it; None is no verdict."""

    contest: Contest
    judgement: Judgement | None

    def to_json(self) -> dict[str, Any]:
        label, verdict = self.contest.label, self.judgement
        found = {"p": verdict.p, "a_first": verdict.a_first, "b_first": verdict.b_first} if verdict else {"p": None}
        return {
            "id": self.contest.id,
            "subset": self.contest.row.subset,
            "swapped": self.contest.swapped,
            "label": None if label is None else "AB"[not label],
            **found,
        }


class Judge(Protocol):
    """What compares responses; those of `judges.py`, and recorded verdicts.

    `shortened` are the places of the rows of which the last `compare` judged shortened responses.
    """

    @property
    def kind(self) -> str: ...

    @property
    def shortened(self) -> frozenset[str]: ...

    def compare(self, asked: Sequence[Contest], quiet: bool = False) -> list[Judgement | None]:
        """A judgement per contest, None where there is none."""
        ...


@dataclass(frozen=True)
class Recorded:
    """Verdicts of a file."""

    path: Path
    kind: str = "recorded"
    shortened: frozenset[str] = frozenset()

    def compare(self, asked: Sequence[Contest], quiet: bool = False) -> list[Judgement | None]:
        """Raises `UserError` as `read_recorded`."""
        return read_recorded(self.path, asked)


def evaluate(
    data: str | Path, judge: Judge, *, name: str, seed: int = 0, quiet: bool = False
) -> tuple[dict[str, Any], list[Judged]]:
    """The report behind `k2rl eval-rewards judge`, and the verdict on every comparison, in the order of the file.

    Args:
        name: what the report calls the judge.
        seed: of the resamples behind the intervals.

    Raises:
        UserError: an unusable file or row, and what the judge raises.
    """
    rows = read(data)
    asked = contests(rows)
    start = time.perf_counter()
    judged = [Judged(c, v) for c, v in zip(asked, judge.compare(asked, quiet), strict=True)]
    wall_s = time.perf_counter() - start
    about = {"schema_version": SCHEMA_VERSION, "judge": name, "kind": judge.kind, "data": str(data)}
    counted = [j.contest.row for j in judged if j.judgement and j.contest.label is not None]
    work = {"shortened": sum(row.place in judge.shortened for row in counted), "per_second": len(asked) / wall_s}
    return {**about, **_report(rows, judged, seed), **work}, judged


# --- report ----------------------------------------------------------------------------------------------------


def _report(rows: Sequence[Row], judged: Sequence[Judged], seed: int) -> dict[str, Any]:
    pairs = [j for j in judged if j.contest.label is not None]
    labelled = _labelled(pairs)
    subsets = _by_subset((j.contest.row, j) for j in pairs)
    return {
        "n": len(labelled),
        **metrics.measure(labelled),
        "temperature": metrics.fitted_temperature(labelled),
        "no_verdict": len(pairs) - len(labelled),
        "ci95": metrics.intervals(labelled, seed=seed),
        "reliability": metrics.reliability(labelled),
        "lengths": _by_length(pairs),
        "subsets": {name: _subset(part, seed) for name, part in subsets.items()},
        "best_of_n": _best_of_n(rows, judged),
    }


def _labelled(pairs: Iterable[Judged]) -> Labelled:
    """Those with a verdict; pairs of one prompt belong together."""
    known = [(j.contest, j.judgement) for j in pairs if j.judgement]
    return Labelled.of(
        [judgement for _, judgement in known],
        [bool(contest.label) for contest, _ in known],
        [(len(contest.responses[0]), len(contest.responses[1])) for contest, _ in known],
        [contest.row.prompt for contest, _ in known],
    )


def _by_subset(items: Iterable[tuple[Row, T]]) -> dict[str, list[T]]:
    found = defaultdict(list)
    for row, item in items:
        if row.subset is not None:
            found[row.subset].append(item)
    return dict(found)


def _subset(pairs: Sequence[Judged], seed: int) -> dict[str, Any]:
    labelled = _labelled(pairs)
    return {
        "n": len(labelled),
        **metrics.measure(labelled, ["accuracy"]),
        "no_verdict": len(pairs) - len(labelled),
        "ci95": metrics.intervals(labelled, ["accuracy"], seed=seed),
    }


def _by_length(pairs: Iterable[Judged]) -> list[dict[str, Any]]:
    """Groups of pairs by how many times the longer response is as long as the shorter: of each the largest `ratio`,
    `n`, and the shares that choose the longer and are labelled so."""
    found = []
    for j in pairs:
        a, b = map(len, j.contest.responses)
        if j.judgement and a != b:
            ratio = max(a, b) / max(1, min(a, b))
            chosen = 0.5 + math.copysign(0.5, a - b) * float(np.sign(round(j.judgement.p - 0.5, 12)))
            found.append((ratio, chosen, float(j.contest.label == (a > b))))
    parts = np.array_split(np.array(sorted(found)).reshape(-1, 3), _LENGTH_BINS)
    return [
        {
            "ratio": float(part[-1, 0]),
            "n": len(part),
            "chosen_longer": float(part[:, 1].mean()),
            "labelled_longer": float(part[:, 2].mean()),
        }
        for part in parts
        if len(part)
    ]


def _best_of_n(rows: Sequence[Row], judged: Sequence[Judged]) -> dict[str, Any] | None:
    """How often the response that wins most of all in its row is a right one; None without such rows."""
    of_row = defaultdict(list)
    for j in judged:
        of_row[j.contest.row.place].append(j)
    found = [(row, _winner_is_right(row, of_row[row.place])) for row in rows if row.best_of_n]
    if not found:
        return None
    subsets = _by_subset(found)
    return {**_share([x for _, x in found]), "subsets": {name: _share(part) for name, part in subsets.items()}}


def _winner_is_right(row: Row, judged: Sequence[Judged]) -> float | None:
    """1, 0, or the share of right ones among those that win most; None where a comparison has no verdict."""
    wins = np.zeros(len(row.responses))
    for j in judged:
        if j.judgement is None:
            return None
        wins[j.contest.a] += j.judgement.p
        wins[j.contest.b] += 1 - j.judgement.p
    best = np.round(wins, 9) == np.round(wins, 9).max()
    return float(np.array(row.right)[best].mean())


def _share(found: Sequence[float | None]) -> dict[str, Any]:
    known = [x for x in found if x is not None]
    accuracy = sum(known) / len(known) if known else None
    interval = None if accuracy is None else wilson(accuracy, len(known))
    return {
        "n": len(known),
        "accuracy": accuracy,
        "no_verdict": len(found) - len(known),
        "ci95": {"accuracy": interval},
    }


# --- on the screen ---------------------------------------------------------------------------------------------

_SAYS = {
    "accuracy": "the right one chosen; a tie counts half",
    "accuracy_both_orders": "chosen in each order alone",
    "order_agreement": "the same one chosen in both orders",
    "tie_rate": "neither chosen",
    "first_share": "of single orders, the one shown first chosen; 0.5 is no bias",
    "brier": "0 is best, 0.25 is always saying 0.5",
    "ece": "how far confidence is from accuracy",
    "auroc": "0.5 is chance",
    "length_bias": "longer chosen minus longer right",
}


def tables(report: Mapping[str, Any]) -> list[Table]:
    """A report for the terminal."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(f"{report['judge']} on {report['data']}, {report['n']} pairs"), title_justify="left")
    for column, justify in (("metric", "left"), ("value", "right"), ("95 %", "right"), ("", "left")):
        grid.add_column(column, justify=justify)  # type: ignore[arg-type]
    for name, says in _SAYS.items():
        grid.add_row(name, _shown(report[name]), _interval(report["ci95"][name]), says)
    grid.add_row("temperature", _shown(report["temperature"]), "", "would calibrate it; above 1: too sure of itself")
    grid.add_row("no_verdict", str(report["no_verdict"]), "", "pairs left out: too long, or unreadable")
    if report["shortened"]:
        grid.add_row("shortened", str(report["shortened"]), "", "pairs judged by the beginnings of their responses")
    best = report["best_of_n"]
    parts = [(name, part) for name, part in report["subsets"].items()]
    if best:
        parts += [("best of n", best), *((f"best of n, {name}", part) for name, part in best["subsets"].items())]
    if not parts:
        return [grid]
    by_part = Table(title="accuracy", title_justify="left")
    for column in ("subset", "n", "accuracy", "95 %", "no verdict"):
        by_part.add_column(column, justify="left" if column == "subset" else "right")
    for name, part in parts:
        interval = _interval(part["ci95"]["accuracy"])
        by_part.add_row(Text(name), str(part["n"]), _shown(part["accuracy"]), interval, str(part["no_verdict"]))
    return [grid, by_part]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(bounds: Sequence[float] | None) -> str:
    return "" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"
