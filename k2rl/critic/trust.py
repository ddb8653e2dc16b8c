"""How far the judge can be trusted, measured each iteration on pairs it has not been trained on. Pure.

    trust = Trust(Config())
    trust.add(iteration, judged_pairs)                # verified pairs, and degradation pairs of open-ended envs
    gates = trust.gates(iteration, ["writing"])       # {"writing": Gate(weight=0.4, reason="open", ...)}

The weight of an open-ended environment is

    w = clip((bound - max(0.5, best trivial rule)) / ramp, 0, 1)

with the lower bound of the judge's accuracy on the degradation pairs of that environment's window (an own response
against its corruption), and the accuracy on the same pairs of rules that need no judge: the longer one, the shorter
one, the one in the right format. The same for pairs apart (an own response against the corruption of another one to the
same prompt), where there are any: w is the lower one. These are like what a tournament compares, and a judge that sees
no more than where near copies differ is at chance there. No judge is at 1, for the corrupted one may still be better;
but without the corruption either would be as likely to be better, so what exceeds 0.5 is knowledge of corruptions.

Verified pairs are the guard: significantly below the judge's own start or below chance there closes every gate. Where
the judge of the start is asked about the same pairs, the two are compared on them; else with how the start did on the
first pairs, which may have been easier. Where it is asked about an environment's degradation pairs too, it guards that
gate by them: a judge that forgets is seen first where it is surest. What a guard has closed stays closed until the
judge is no worse at all. Too few pairs or tasks: closed. A guard with too few pairs says nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2rl.critic.bounds import Share, bounds, student
from k2rl.critic.metrics import Labelled, fitted_temperature, intervals, measure
from k2rl.critic.records import JudgedPair, Judgement, source_of

Floats = NDArray[np.float64]

RULES = ("longer", "shorter", "format")
METRICS = ("accuracy", "order_agreement", "brier", "ece")
_START = 4
"""Times `min_pairs` that a start is measured on, or a whole window: fewer would often make it look too good."""
_LOGIT = 5.0
"""Log-odds are cut here for their slope, or a few sure verdicts would decide it."""


@dataclass
class Config:
    """When a judge's reward counts. All values are our own choices.

    Args:
        window: iterations whose pairs are looked at.
        min_pairs, min_tasks: fewer of either in the window keep a gate closed, or the guard silent.
        ramp: the weight is 1 where the bound is so far above the best trivial rule.
        confidence: of the one-sided bound that opens a gate. At 0.995 a coin opens one in less than one of a hundred
            windows, also a coin that is of one mind on each task.
        guard_confidence: with which accuracy must have fallen.
        guard_drop: a guard closes where accuracy is significantly more than this below the judge's start.
        resamples: of the bootstrap behind the reported interval; no gate depends on it.
    """

    window: int = 8
    min_pairs: int = 30
    min_tasks: int = 5
    ramp: float = 0.1
    confidence: float = 0.995
    guard_confidence: float = 0.99
    guard_drop: float = 0.0
    resamples: int = 400

    def problems(self) -> list[str]:
        """What is wrong with these settings: one line each, the key first."""
        least = {"window": 1, "min_pairs": 2, "min_tasks": 2, "resamples": 1}
        found = [f"{k} is {getattr(self, k)}: it must be {n} or more" for k, n in least.items() if getattr(self, k) < n]
        if not 0 < self.ramp < math.inf:
            found.append(f"ramp is {self.ramp}: it must be above 0")
        if not 0 <= self.guard_drop <= 1:
            found.append(f"guard_drop is {self.guard_drop}: it lies in [0, 1]")
        for key in ("confidence", "guard_confidence"):
            if not 0.5 < getattr(self, key) < 1:
                found.append(f"{key} is {getattr(self, key)}: it lies between 0.5 and 1")
        return found


@dataclass(frozen=True)
class Gate:
    """One environment's weight, and why.

    `reason`: `open`; `too_few_pairs`, `too_few_tasks`; `guard_below_start`, `guard_below_chance`, `guard_forgetting`;
    `no_better_than_chance`, `no_better_than_longer`, `no_better_than_shorter`, `no_better_than_format`. `bound` is the
    lower bound of the accuracy, `baseline` what it has to exceed, both None where there are no pairs. `alarm` is a line
    for the user where an open gate has just closed.
    """

    weight: float
    reason: str
    bound: float | None
    baseline: float | None
    alarm: str | None = None


@dataclass(frozen=True)
class _Row:
    """What is kept of a judged pair. The better response is A; `format` is 1 if it alone has the right format, 0 if
    the worse one alone does, else 0.5."""

    iteration: int
    env: str
    task: str
    kind: str
    a_first: float
    b_first: float
    longer: int
    ratio: float
    format: float
    apart: bool
    reference: float | None
    """Whether the judge of the run's start was right."""

    @property
    def verified(self) -> bool:
        return self.kind == "verified"

    @property
    def source(self) -> str:
        return source_of(self.kind, self.apart)

    @property
    def correct(self) -> float:
        return Judgement(self.a_first, self.b_first).prefers_a

    def by_rule(self, rule: str) -> float:
        """Whether a trivial rule is right, 0.5 where it has no choice."""
        return {"longer": 0.5 + self.longer / 2, "shorter": 0.5 - self.longer / 2, "format": self.format}[rule]


class Trust:
    """See the module."""

    def __init__(self, config: Config, seed: int = 0) -> None:
        if problems := config.problems():
            raise ValueError(problems[0])
        self._config, self._seed = config, seed
        self._rows: list[_Row] = []
        self._start: dict[str, Share] = {}
        """Per env, the first verified pairs that were enough, before the critic could learn much."""
        self._open: set[str] = set()
        self._guarded = False
        """Whether the guard has closed the gates."""
        self._forgetting: set[str] = set()
        """Environments whose own pairs have closed their gate."""

    def add(
        self,
        iteration: int,
        pairs: Sequence[JudgedPair],
        format_ok: Sequence[tuple[bool, bool] | None] | None = None,
    ) -> None:
        """Pairs judged in an iteration; `format_ok` says of the better and the worse response whether it has the form
        the environment asks for.

        Raises:
            ValueError: not as many flags as pairs.
        """
        flags = [None] * len(pairs) if format_ok is None else format_ok
        for judged, flag in zip(pairs, flags, strict=True):
            pair, better, worse = judged.pair, len(judged.pair.better), len(judged.pair.worse)
            self._rows.append(
                _Row(
                    iteration,
                    pair.env,
                    pair.task,
                    pair.kind,
                    judged.judgement.a_first,
                    judged.judgement.b_first,
                    (better > worse) - (better < worse),
                    math.log((better + 1) / (worse + 1)),
                    0.5 if flag is None else 0.5 + (flag[0] - flag[1]) / 2,
                    pair.apart,
                    None if judged.reference is None else judged.reference.prefers_a,
                )
            )

    def gates(self, iteration: int, envs: Sequence[str]) -> dict[str, Gate]:
        """The gates of open-ended environments after an iteration's pairs; pairs before the window are forgotten."""
        self._rows = [row for row in self._rows if row.iteration > iteration - self._config.window]
        guard = self._guard(iteration)
        gates = {}
        for env in envs:
            rows = [row for row in self._rows if row.env == env]
            gate = self._gate(rows, guard or self._forgets(env, rows))
            if gate.weight == 0 and env in self._open:
                alarm = f"critic: iteration {iteration}: the gate of {env} has closed: {gate.reason}"
                if gate.bound is not None:
                    alarm += f" (accuracy surely above {gate.bound:.2f}, needed {gate.baseline:.2f})"
                gate = Gate(gate.weight, gate.reason, gate.bound, gate.baseline, alarm)
            self._open = self._open | {env} if gate.weight else self._open - {env}
            gates[env] = gate
        return gates

    def temperature(self, env: str) -> float:
        """By what the log-odds of verdicts in an environment are to be divided, see `metrics.tempered`: fitted on its
        degradation pairs in the window. At least 1, for these pairs are easier to tell apart than two own responses;
        1 where they are too few."""
        rows = [row for row in self._rows if row.env == env and row.source == "degradation"]
        if self._too_few(rows):
            return 1.0
        return max(fitted_temperature(_labelled(rows)) or 1.0, 1.0)

    def report(self) -> dict[str, dict[str, Any]]:
        """Figures of the window as `<env>/verified`, `<env>/degradation` and `<env>/apart`.

        `pairs`, `tasks`; `METRICS`; `gain`: the accuracy less that of the run's start on the same pairs (None where
        that was not asked); `length_slope`: by how much the log-odds of the better response rise per unit of the log of
        its length over the other's (None where the lengths do not vary); `RULES`: accuracies; `by_kind`:
        the judge's accuracy by corruption; `ci95`: of the accuracy, by bootstrap over tasks, None where undefined.
        """
        groups: dict[str, list[_Row]] = defaultdict(list)
        for row in self._rows:
            groups[f"{row.env}/{row.source}"].append(row)
        return {name: self._figures(rows) for name, rows in sorted(groups.items())}

    def state(self) -> dict[str, Any]:
        """Everything the next gates depend on, as JSON."""
        return {
            "rows": [list(astuple(row)) for row in self._rows],
            "start": {env: asdict(share) for env, share in self._start.items()},
            "open": sorted(self._open),
            "guarded": self._guarded,
            "forgetting": sorted(self._forgetting),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._rows = [_Row(*row) for row in state["rows"]]
        self._start = {env: Share(**share) for env, share in state["start"].items()}
        self._open = set(state["open"])
        self._guarded = state["guarded"]
        self._forgetting = set(state["forgetting"])

    # --- the gate ----------------------------------------------------------------------------------------------

    def _gate(self, rows: Sequence[_Row], guard: str | None) -> Gate:
        """The lower weight of the two kinds of degradation pairs, where there are both."""
        own = [[row for row in rows if row.source == source] for source in ("degradation", "apart")]
        gates = [self._by_bound(some, guard) for some in own if some]
        return min(gates, key=lambda gate: gate.weight, default=Gate(0.0, "too_few_pairs", None, None))

    def _by_bound(self, rows: Sequence[_Row], guard: str | None) -> Gate:
        share = _share(rows)
        rules = {"chance": 0.5} | {rule: float(np.mean([row.by_rule(rule) for row in rows])) for rule in RULES}
        best = max(rules, key=lambda rule: rules[rule])
        bound = bounds(share, self._config.confidence)[0]
        weight = min(max((bound - rules[best]) / self._config.ramp, 0.0), 1.0)
        reason = self._too_few(rows) or guard or ("open" if weight else f"no_better_than_{best}")
        return Gate(weight if reason == "open" else 0.0, reason, bound, rules[best])

    def _guard(self, iteration: int) -> str | None:
        """Why verified pairs close every gate, if they do. Accuracies of several environments are compared at their
        shares of today's pairs: a change of these is no change of the judge."""
        by_env: dict[str, list[_Row]] = defaultdict(list)
        for row in self._rows:
            if row.verified:
                by_env[row.env].append(row)
        for env, rows in by_env.items():
            whole = iteration - min(row.iteration for row in rows) + 1 >= self._config.window
            enough = whole or len(rows) >= _START * self._config.min_pairs
            if env not in self._start and enough and not self._too_few(rows):
                self._start[env] = _share(rows)
        everything = [row for rows in by_env.values() for row in rows]
        if self._too_few(everything):
            return None
        confidence = self._confidence(self._guarded)
        compared = [row for row in everything if row.reference is not None]
        since = {env: _share(rows) for env, rows in by_env.items() if env in self._start}
        reason = None
        if self._worse(compared, confidence) if compared else self._fallen(since, confidence):
            reason = "guard_below_start"
        elif bounds(_share(everything), confidence)[1] < 0.5:
            reason = "guard_below_chance"
        self._guarded = reason is not None
        return reason

    def _forgets(self, env: str, rows: Sequence[_Row]) -> str | None:
        """Whether the judge has become worse on an environment's degradation pairs, near and apart."""
        compared = [row for row in rows if not row.verified and row.reference is not None]
        if self._too_few(compared):
            return None
        worse = self._worse(compared, self._confidence(env in self._forgetting))
        self._forgetting = self._forgetting | {env} if worse else self._forgetting - {env}
        return "guard_forgetting" if worse else None

    def _confidence(self, closed: bool) -> float:
        """Closed, a guard opens when the judge is no worse at all; or chance would open it every few iterations."""
        return 0.5 if closed else self._config.guard_confidence

    def _worse(self, rows: Sequence[_Row], confidence: float) -> bool:
        """Whether the judge is significantly worse than the one of the start on the same pairs: by the mean difference,
        with an error that allows for pairs of one task being alike."""
        by_task: dict[tuple[str, str], list[float]] = defaultdict(list)
        for row in rows:
            by_task[row.env, row.task].append((row.reference or 0.0) - row.correct)
        drop = sum(map(sum, by_task.values())) / len(rows)
        spread = sum((sum(own) - len(own) * drop) ** 2 for own in by_task.values())
        error = math.sqrt(spread * len(by_task) / max(len(by_task) - 1, 1)) / len(rows)
        return drop - student(confidence, len(by_task) - 1) * error > self._config.guard_drop

    def _fallen(self, now: Mapping[str, Share], confidence: float) -> bool:
        if not now:
            return False
        pairs = sum(share.pairs for share in now.values())
        drop = variance = 0.0
        for env, share in now.items():
            weight, start = share.pairs / pairs, self._start[env]
            drop += weight * (start.value - share.value)
            variance += weight**2 * (start.variance + share.variance)
        tasks = min(sum(s.tasks for s in now.values()), sum(self._start[env].tasks for env in now))
        return drop - student(confidence, tasks - 1) * math.sqrt(variance) > self._config.guard_drop

    def _too_few(self, rows: Sequence[_Row]) -> str | None:
        if len(rows) < self._config.min_pairs:
            return "too_few_pairs"
        return "too_few_tasks" if len({(row.env, row.task) for row in rows}) < self._config.min_tasks else None

    # --- the report --------------------------------------------------------------------------------------------

    def _figures(self, rows: Sequence[_Row]) -> dict[str, Any]:
        labelled = _labelled(rows)
        by_kind: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            by_kind[row.kind].append(row.correct)
        return {
            "pairs": len(rows),
            "tasks": len({row.task for row in rows}),
            **measure(labelled, METRICS),
            "gain": _mean([row.correct - row.reference for row in rows if row.reference is not None]),
            "length_slope": _length_slope(rows, labelled.p_N),
            **{rule: float(np.mean([row.by_rule(rule) for row in rows])) for rule in RULES},
            "by_kind": {kind: float(np.mean(found)) for kind, found in sorted(by_kind.items())},
            "ci95": intervals(labelled, ["accuracy"], seed=self._seed, resamples=self._config.resamples)["accuracy"],
        }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _labelled(rows: Sequence[_Row]) -> Labelled:
    judgements = [Judgement(row.a_first, row.b_first) for row in rows]
    return Labelled.of(judgements, [True] * len(rows), clusters=[row.task for row in rows])


def _length_slope(rows: Sequence[_Row], p_N: Floats) -> float | None:
    """By least squares with an intercept, so that being right is not taken for liking length."""
    ratio_N = np.array([row.ratio for row in rows])
    if ratio_N.var() <= 1e-9:
        return None
    surest = 1 / (1 + math.exp(-_LOGIT))
    p_N = np.clip(p_N, 1 - surest, surest)
    return float(np.polyfit(ratio_N, np.log(p_N / (1 - p_N)), 1)[0])


def _share(rows: Sequence[_Row]) -> Share:
    return Share.of([(row.correct, f"{row.env}/{row.task}") for row in rows])
