"""Budgets: whose counts, and what running into one costs."""

from __future__ import annotations

import pytest

from k2rl import budget
from k2rl.budget import BudgetConfig
from k2rl.types import End, Rollout, Segment, Task


def ended(end: End) -> Rollout:
    return Rollout(Task("x"), 0, (1,), (Segment("policy", (1, 2, 3), (-1.0, -1.0, -1.0)),), end)


def test_recipe_before_task_before_env() -> None:
    assert budget.limit(Task("x", budget=20), BudgetConfig(tokens=10), 30) == 10
    assert budget.limit(Task("x", budget=20), BudgetConfig(), 30) == 20
    assert budget.limit(Task("x"), BudgetConfig(), 30) == 30


@pytest.mark.parametrize(
    ("score", "end", "mode", "reward"),
    [
        (1.0, End.STOP, "truncate", 1.0),
        (1.0, End.ENV_LIMIT, "truncate", 1.0),
        (0.0, End.BUDGET, "truncate", -0.5),
        (0.0, End.BUDGET, "override", -1.0),
        (1.0, End.STOP, "override", 1.0),
        (1.0, End.BUDGET, "override", -1.0),
    ],
)
def test_rewards(score: float, end: End, mode: str, reward: float) -> None:
    assert budget.reward(score, ended(end), BudgetConfig(mode=mode)) == reward


def test_rewards_stay_in_range() -> None:
    assert budget.reward(0.0, ended(End.BUDGET), BudgetConfig(penalty=2.0)) == -1.0


@pytest.mark.parametrize("config", [BudgetConfig(tokens=0), BudgetConfig(mode="cut"), BudgetConfig(penalty=-0.1)])
def test_what_makes_no_sense_is_named(config: BudgetConfig) -> None:
    assert len(budget.problems(config)) == 1


def test_what_makes_sense_is_not() -> None:
    assert not budget.problems(BudgetConfig(tokens=1, mode="override"))
    assert not budget.problems(BudgetConfig(penalty=0.0))
