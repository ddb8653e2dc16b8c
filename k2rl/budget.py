"""Token budgets: how long a response may be, and what it costs to run into the limit.

K2 states a budget per task type and a penalty for truncated responses without numbers: the numbers are our own
choice. `truncate` follows K2, `override` K3 (the reward is replaced by -1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from k2rl.types import End, Rollout, Task

MODES = ("truncate", "override")
_PENALTY = 0.5


@dataclass
class BudgetConfig:
    """`tokens` (None: the task's or the env's own) bounds all policy tokens of a rollout; `penalty` (0.5 unless set) is
    subtracted from a truncated response's reward in mode `truncate`, and has no place in mode `override`."""

    tokens: int | None = None
    mode: str = "truncate"
    penalty: float | None = None


def limit(task: Task, config: BudgetConfig, env_default: int) -> int:
    """Policy tokens a rollout may use: the recipe's, else the task's, else the env class's."""
    for tokens in (config.tokens, task.budget):
        if tokens is not None:
            return tokens
    return env_default


def reward(score: float, rollout: Rollout, config: BudgetConfig) -> float:
    """`clip(score - penalties, -1, 1)`; in mode `override` a truncated rollout gets -1."""
    if rollout.end is not End.BUDGET:
        return min(max(score, -1.0), 1.0)
    if config.mode == "override":
        return -1.0
    penalty = _PENALTY if config.penalty is None else config.penalty
    return min(max(score - penalty, -1.0), 1.0)


def problems(config: BudgetConfig) -> Sequence[str]:
    """What is wrong with these settings: one line each."""
    found = []
    if config.tokens is not None and config.tokens < 1:
        found.append(f"tokens is {config.tokens}: a budget is 1 token or more")
    if config.mode not in MODES:
        found.append(f"mode is {config.mode!r}: allowed are {', '.join(MODES)}")
    if config.penalty is not None and config.mode == "override":
        found.append(f"penalty is {config.penalty}: it has no effect with mode=override, whose reward is -1")
    elif config.penalty is not None and not 0 <= config.penalty <= 2:
        found.append(f"penalty is {config.penalty}: it lies in [0, 2]")
    return found
