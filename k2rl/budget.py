"""Token budgets: how long a response may be, and what its length does to its reward.

Modes: `truncate` follows K2 (a response over its budget is cut and penalised), `override` K3 (arXiv 2607.24653: its
reward is replaced by -1), `toggle` K2.5 (arXiv 2602.02276: iterations that count a correct answer only within its
task's budget alternate with iterations that let it run to full length). A task's budget may be estimated from the
lengths of the start model's *correct* answers to it. Beside any mode, K1.5's length reward (arXiv 2501.12599
section 2.3.3). No report gives numbers: all defaults here are own choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from k2rl.types import End, Rollout, Task, mean

MODES = ("truncate", "override", "toggle")
_PENALTY = 0.5
_TOGGLE_PERCENTILE = 70.0
_TOGGLE_EVERY = 10
_TOGGLE_ACCURACY = 0.5
_LENGTH_WARMUP = 0.25
_TINY, _HUGE = 1e-9, 1e9


@dataclass
class BudgetConfig:
    """How long a response may be, and what its length does to its reward; see docs/budgets.md.

    Args:
        tokens: bounds all policy tokens of a rollout; null: the task's own budget, else the env's.
        mode: `truncate`, `override` or `toggle`. The first two cut a response there, and its reward is less by
            `penalty`, or is -1. `toggle` cuts at `tokens` alone, and the reward is 0 there: for `toggle_every`
            iterations a reward counts only if the group's mean reward is below `toggle_accuracy` or the response keeps
            to its task's estimated budget, then for as many every reward counts; and so on.
        penalty: of mode `truncate`: 0.5 unless set.
        percentile: estimates a budget per task: that percentile of the token counts of the correct answers in the env's
            `measured` file, never above the full budget; a task without a correct answer keeps the full one. 70 in mode
            `toggle` unless set.
        factor: what an estimate is multiplied by: 1 unless set.
        toggle_every: iterations of a phase: 10 unless set.
        toggle_accuracy: the mean reward from which the budget counts: 0.5 unless set.
        length_weight: adds that much of K1.5's length reward, which favours the shorter of a group's correct answers;
            0: off.
        length_warmup: the share of the run's iterations without it: 0.25 unless set.
        max_repeats: ends a response that says one thing so many times in a row, see `repetition.py`; it costs what
            running into the budget does. null: never.
    """

    tokens: int | None = None
    mode: str = "truncate"
    penalty: float | None = None
    percentile: float | None = None
    factor: float | None = None
    toggle_every: int | None = None
    toggle_accuracy: float | None = None
    length_weight: float = 0.0
    length_warmup: float | None = None
    max_repeats: int | None = None

    @property
    def estimated(self) -> bool:
        """Whether tasks have budgets of their own, estimated from correct answers."""
        return self.mode == "toggle" or self.percentile is not None


@dataclass(frozen=True)
class Moment:
    """When in a run rewards are made: the iteration (from 1), the share of the run that is over, and the estimated
    budgets by task id."""

    iteration: int = 1
    progress: float = 0.0
    estimates: Mapping[str, int] = field(default_factory=dict)


START = Moment()


def limit(task: Task, config: BudgetConfig, env_default: int, estimates: Mapping[str, int] | None = None) -> int:
    """Policy tokens a rollout may use: the recipe's, else the task's, else the env class's; less where the task's own
    estimate is what cuts."""
    full = next(tokens for tokens in (config.tokens, task.budget, env_default) if tokens is not None)
    return full if config.mode == "toggle" else min(full, (estimates or {}).get(task.id, full))


def estimate(lengths: Sequence[int], config: BudgetConfig) -> int | None:
    """A task's budget from the token counts of its correct answers; None without any.

    The percentile is the smallest length that so many per cent of the answers keep to.
    """
    if not lengths:
        return None
    percentile = _TOGGLE_PERCENTILE if config.percentile is None else config.percentile
    at = max(math.ceil(percentile / 100 * len(lengths)), 1)
    return max(math.ceil(sorted(lengths)[at - 1] * (1.0 if config.factor is None else config.factor)), 1)


def reward(score: float, rollout: Rollout, config: BudgetConfig) -> float:
    """`clip(score - penalties, -1, 1)`; in mode `override` a truncated rollout gets -1."""
    if not rollout.cut or config.mode == "toggle":
        return min(max(score, -1.0), 1.0)
    if config.mode == "override":
        return -1.0
    penalty = _PENALTY if config.penalty is None else config.penalty
    return min(max(score - penalty, -1.0), 1.0)


def limited(config: BudgetConfig, iteration: int) -> bool:
    """Whether an iteration (from 1) of mode `toggle` counts rewards within the budget alone; it begins so."""
    every = _TOGGLE_EVERY if config.toggle_every is None else config.toggle_every
    return config.mode == "toggle" and (iteration - 1) // every % 2 == 0


def shape(
    rewards: Sequence[float], rollouts: Sequence[Rollout], passed: Sequence[bool], config: BudgetConfig, moment: Moment
) -> list[float]:
    """What lengths make of a group's rewards, in its valid rollouts' order: `toggle`, then the length reward, which may
    take them up to half of `length_weight` beyond [-1, 1]."""
    lengths = [r.policy_tokens for r in rollouts]
    shaped = list(rewards)
    own = moment.estimates.get(rollouts[0].task.id)
    accuracy = _TOGGLE_ACCURACY if config.toggle_accuracy is None else config.toggle_accuracy
    if limited(config, moment.iteration) and own is not None and mean(rewards) >= accuracy:
        shaped = [x if length <= own else 0.0 for x, length in zip(shaped, lengths, strict=True)]
    warmup = _LENGTH_WARMUP if config.length_warmup is None else config.length_warmup
    if config.length_weight and moment.progress >= warmup:
        bonus = length_reward(lengths, passed)
        # An overridden reward is -1 and nothing else.
        free = [config.mode != "override" or not r.cut for r in rollouts]
        shaped = [x + config.length_weight * b * f for x, b, f in zip(shaped, bonus, free, strict=True)]
    return shaped


def length_reward(lengths: Sequence[int], passed: Sequence[bool]) -> list[float]:
    """K1.5's: 0.5 - (length - shortest) / (longest - shortest) of the group for a correct response, the same but at
    most 0 for another; 0 for all where all are of one length."""
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [0.0] * len(lengths)
    gains = [0.5 - (n - shortest) / (longest - shortest) for n in lengths]
    return [gain if right else min(0.0, gain) for gain, right in zip(gains, passed, strict=True)]


def metrics(rollouts: Sequence[Rollout], config: BudgetConfig, moment: Moment) -> dict[str, float]:
    """Shares of an env's rollouts: `budget_hit`, cut at what they may use; `repeat`, ended because they repeated
    themselves; `over_estimate`, longer than their task's own budget (toggle). `toggle`: 1 while the budget is on, 0 in
    the iterations between."""
    found = {"budget_hit": mean([float(r.end is End.BUDGET) for r in rollouts])}
    if config.max_repeats is not None:
        found["repeat"] = mean([float(r.end is End.REPEAT) for r in rollouts])
    if config.mode == "toggle":
        own = [moment.estimates.get(r.task.id, r.policy_tokens) for r in rollouts]
        found["over_estimate"] = mean([float(r.policy_tokens > n) for r, n in zip(rollouts, own, strict=True)])
        found["toggle"] = float(limited(config, moment.iteration))
    return found


def problems(config: BudgetConfig) -> list[str]:
    """What is wrong with these settings: one line each."""
    found = []
    if config.tokens is not None and config.tokens < 1:
        found.append(f"tokens is {config.tokens}: a budget is 1 token or more")
    if config.mode not in MODES:
        found.append(f"mode is {config.mode!r}: allowed are {', '.join(MODES)}")
    for key, low, high, said in (
        ("penalty", 0, 2, "in [0, 2]"),
        ("percentile", _TINY, 100, "in (0, 100]"),
        ("factor", _TINY, _HUGE, "above 0"),
        ("toggle_every", 1, _HUGE, "at 1 or more"),
        ("toggle_accuracy", 0, 1, "in [0, 1]"),
        ("length_weight", 0, 2, "in [0, 2]"),
        ("length_warmup", 0, 1 - _TINY, "in [0, 1)"),
        ("max_repeats", 2, _HUGE, "at 2 or more"),
    ):
        value = getattr(config, key)
        if value is not None and not low <= value <= high:
            found.append(f"{key} is {value}: it lies {said}")
    for key, used, owner in (
        ("penalty", config.mode not in ("override", "toggle"), "with mode=" + config.mode),
        ("factor", config.estimated, "without percentile"),
        ("toggle_every", config.mode == "toggle", "with mode=" + config.mode),
        ("toggle_accuracy", config.mode == "toggle", "with mode=" + config.mode),
        ("length_warmup", config.length_weight > 0, "without length_weight"),
    ):
        if getattr(config, key) is not None and not used:
            found.append(f"{key} is {getattr(config, key)}: it has no effect {owner}")
    return found
