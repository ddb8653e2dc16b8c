"""Budgets: whose counts, what running into one costs, and what lengths make of rewards."""

from __future__ import annotations

import pytest

from k2rl import budget
from k2rl.budget import BudgetConfig, Moment
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
        (0.0, End.REPEAT, "truncate", -0.5),
        (0.0, End.REPEAT, "override", -1.0),
        (0.0, End.REPEAT, "toggle", 0.0),
    ],
)
def test_rewards(score: float, end: End, mode: str, reward: float) -> None:
    assert budget.reward(score, ended(end), BudgetConfig(mode=mode)) == reward


def test_rewards_stay_in_range() -> None:
    assert budget.reward(0.0, ended(End.BUDGET), BudgetConfig(penalty=2.0)) == -1.0


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (BudgetConfig(tokens=0), "tokens is 0"),
        (BudgetConfig(mode="cut"), "mode is 'cut'"),
        (BudgetConfig(penalty=-0.1), "penalty is -0.1"),
        (BudgetConfig(percentile=0.0), "percentile is 0.0"),
        (BudgetConfig(percentile=101.0), "percentile is 101.0"),
        (BudgetConfig(percentile=50.0, factor=0.0), "factor is 0.0"),
        (BudgetConfig(mode="toggle", toggle_every=0), "toggle_every is 0"),
        (BudgetConfig(mode="toggle", toggle_accuracy=1.5), "toggle_accuracy is 1.5"),
        (BudgetConfig(length_weight=-1.0), "length_weight is -1.0"),
        (BudgetConfig(length_weight=1.0, length_warmup=1.0), "length_warmup is 1.0"),
        (BudgetConfig(max_repeats=1), "max_repeats is 1"),
        (BudgetConfig(mode="toggle", penalty=0.5), "penalty is 0.5: it has no effect with mode=toggle"),
        (BudgetConfig(factor=2.0), "factor is 2.0: it has no effect without percentile"),
        (BudgetConfig(toggle_every=3), "toggle_every is 3: it has no effect with mode=truncate"),
        (BudgetConfig(mode="override", toggle_accuracy=0.5), "toggle_accuracy is 0.5: it has no effect"),
        (BudgetConfig(length_warmup=0.5), "length_warmup is 0.5: it has no effect without length_weight"),
    ],
)
def test_what_makes_no_sense_is_named(config: BudgetConfig, key: str) -> None:
    (problem,) = budget.problems(config)
    assert problem.startswith(key)


def test_what_makes_sense_is_not() -> None:
    assert not budget.problems(BudgetConfig(tokens=1, mode="override"))
    assert not budget.problems(BudgetConfig(penalty=0.0))
    assert not budget.problems(BudgetConfig(mode="toggle", factor=1.5, toggle_every=1, toggle_accuracy=0.0))
    assert not budget.problems(BudgetConfig(mode="override", percentile=100.0, factor=2.0, length_weight=0.5))


@pytest.mark.parametrize(
    ("percentile", "factor", "tokens"), [(50, None, 4), (51, None, 6), (1, None, 2), (100, 1.5, 12), (50, 0.6, 3)]
)
def test_an_estimate_is_a_length_that_so_many_answers_keep_to(
    percentile: float, factor: float | None, tokens: int
) -> None:
    assert budget.estimate([8, 2, 6, 4], BudgetConfig(percentile=percentile, factor=factor)) == tokens


def test_without_a_correct_answer_there_is_no_estimate() -> None:
    assert budget.estimate([], BudgetConfig(percentile=50)) is None


def test_estimates_cut_except_in_toggle() -> None:
    task, other = Task("x"), Task("y")
    own = {task.id: 7}
    for mode, cut in (("truncate", 7), ("override", 7), ("toggle", 20)):
        config = BudgetConfig(tokens=20, mode=mode, percentile=50)
        assert budget.limit(task, config, 30, own) == cut
        assert budget.limit(other, config, 30, own) == 20, "without an estimate the full budget holds"
    assert budget.limit(task, BudgetConfig(tokens=5, percentile=50), 30, own) == 5, "never above the full one"


def of_lengths(*lengths: int, end: End = End.STOP) -> list[Rollout]:
    return [
        Rollout(Task("x"), k, (1,), (Segment("policy", (1,) * n, (-1.0,) * n),), end) for k, n in enumerate(lengths)
    ]


def test_toggle_alternates_every_m_iterations_from_the_limited_phase_on() -> None:
    config = BudgetConfig(mode="toggle", toggle_every=2)
    assert [budget.limited(config, t) for t in range(1, 9)] == [True, True, False, False] * 2
    assert not any(budget.limited(BudgetConfig(toggle_every=2), t) for t in range(1, 9))


def test_toggle_counts_what_keeps_to_the_budget_where_the_group_is_good_enough() -> None:
    """K2.5: r * I(mean r < lambda or length <= budget(x)) in the limited phase, r in the other."""
    config = BudgetConfig(mode="toggle", toggle_every=5, toggle_accuracy=0.5)
    rollouts, right = of_lengths(3, 4, 5, 9), [True, True, True, False]
    own = {rollouts[0].task.id: 4}

    def shaped(rewards: list[float], iteration: int = 1, estimates: dict[str, int] = own) -> list[float]:
        return budget.shape(rewards, rollouts, right, config, Moment(iteration, 0.0, estimates))

    assert shaped([1.0, 1.0, 1.0, 0.0]) == [1.0, 1.0, 0.0, 0.0]
    assert shaped([0.5, 0.5, 1.0, 0.0]) == [0.5, 0.5, 0.0, 0.0], "exactly lambda is not below it"
    assert shaped([0.0, 0.0, 1.0, 0.9]) == [0.0, 0.0, 1.0, 0.9], "below lambda every reward counts"
    assert shaped([1.0, 1.0, 1.0, 0.0], iteration=6) == [1.0, 1.0, 1.0, 0.0]
    assert shaped([1.0, 1.0, 1.0, 0.0], estimates={}) == [1.0, 1.0, 1.0, 0.0]


def test_the_full_budget_costs_nothing_more_in_toggle() -> None:
    assert budget.reward(0.0, ended(End.BUDGET), BudgetConfig(mode="toggle")) == 0.0


def test_the_length_reward_is_that_of_k1_5() -> None:
    assert budget.length_reward([2, 4, 6, 10], [True, False, True, False]) == [0.5, 0.0, 0.0, -0.5]
    assert budget.length_reward([2, 4, 6, 10], [False, True, True, True]) == [0.0, 0.25, 0.0, -0.5]
    assert budget.length_reward([7, 7], [True, False]) == [0.0, 0.0]


def test_the_length_reward_waits_for_its_warmup() -> None:
    rollouts, right = of_lengths(2, 6), [True, True]
    config = BudgetConfig(length_weight=0.4, length_warmup=0.3)
    assert budget.shape([1.0, 1.0], rollouts, right, config, Moment(3, 0.29)) == [1.0, 1.0]
    assert budget.shape([1.0, 1.0], rollouts, right, config, Moment(4, 0.3)) == pytest.approx([1.2, 0.8])


def test_an_overridden_reward_has_no_length_reward() -> None:
    rollouts = [*of_lengths(2), *of_lengths(6, end=End.BUDGET)]
    config = BudgetConfig(mode="override", length_weight=1.0, length_warmup=0.0)
    assert budget.shape([1.0, -1.0], rollouts, [True, False], config, Moment()) == [1.5, -1.0]


def test_metrics_of_a_toggled_env() -> None:
    rollouts = of_lengths(3, 4, 5, 9)
    moment = Moment(11, 0.5, {rollouts[0].task.id: 4})
    found = budget.metrics(rollouts, BudgetConfig(mode="toggle", toggle_every=10), moment)
    assert found == {"budget_hit": 0.0, "over_estimate": 0.5, "toggle": 0.0}
    assert budget.metrics(rollouts, BudgetConfig(), moment) == {"budget_hit": 0.0}


def test_what_was_ended_for_repeating_itself_is_counted_apart() -> None:
    rollouts = [*of_lengths(3), *of_lengths(9, end=End.REPEAT), *of_lengths(9, 9, end=End.BUDGET)]
    assert budget.metrics(rollouts, BudgetConfig(max_repeats=4), Moment()) == {"budget_hit": 0.5, "repeat": 0.25}
