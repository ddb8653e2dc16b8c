"""Reward arithmetic: what counts as a reward, what never does, and when a run stops."""

from __future__ import annotations

from dataclasses import replace

import pytest

from k2rl.budget import BudgetConfig
from k2rl.errors import RunError, UserError
from k2rl.losses.dapo import Dapo
from k2rl.losses.k2 import K2
from k2rl.recipe import EnvSpec
from k2rl.scoring import check_failures, correct, reward, score
from k2rl.types import End, Group, Rollout, Segment, Status, Task, Verdict

TASK = Task("p", env="e")
SPECS = {"e": EnvSpec(id="x")}


def rollout(verdict: Verdict | None, end: End = End.STOP, tokens: int = 3, env_return: float = 0.0) -> Rollout:
    segment = Segment("policy", (1,) * tokens, (-1.0,) * tokens)
    return Rollout(TASK, 0, (5,), (segment,), end, (verdict,) if verdict else (), ("t",), env_return)


FAILED = Verdict.failure(Status.TIMEOUT, "5 s were over")


def test_scores_are_rewards_and_failures_are_none() -> None:
    assert [reward(rollout(v), SPECS["e"]) for v in (Verdict.of(True), Verdict.of(0.25), Verdict.malformed("?"))] == [
        1.0,
        0.25,
        0.0,
    ]
    assert reward(rollout(FAILED), SPECS["e"]) is None


@pytest.mark.parametrize(
    ("mode", "penalty", "expected"), [("truncate", 0.5, -0.5), ("truncate", 2, -1), ("override", None, -1)]
)
def test_a_truncated_response_is_penalised_whatever_it_said(mode: str, penalty: float | None, expected: float) -> None:
    spec = EnvSpec(id="x", budget=BudgetConfig(mode=mode, penalty=penalty))
    cut = rollout(Verdict.of(True), End.BUDGET)
    assert reward(cut, spec) == expected
    assert not correct(cut, spec)


def test_failures_leave_the_group_and_small_groups_are_dropped() -> None:
    kept = Group(TASK, (rollout(Verdict.of(True)), rollout(FAILED), rollout(Verdict.of(False))))
    dropped = Group(TASK, (rollout(Verdict.of(True)), rollout(FAILED), rollout(FAILED)))
    scored = score([kept, dropped], SPECS, K2(), max_failure_rate=1.0)
    (group,) = scored.groups
    assert group.rewards == (1.0, 0.0)
    assert group.advantages == (0.5, -0.5)
    assert scored.metrics["errors/timeout"] == 3
    assert scored.metrics["errors/groups_dropped"] == 1
    assert scored.metrics["reward/e"] == 0.5


def test_too_many_failures_stop_the_run_with_the_cause() -> None:
    group = Group(TASK, (rollout(Verdict.of(True)), rollout(FAILED), rollout(FAILED)))
    with pytest.raises(RunError) as caught:
        score([group], SPECS, K2(), max_failure_rate=0.5)
    line = str(caught.value)
    assert line.startswith("2 of 3 rollouts (67%) have no verdict: 2 timeout of env e; run.max_failure_rate=0.5 allows")
    assert f"For example timeout of task {TASK.id}: 5 s were over. Give that call a time limit" in line


def test_one_environment_that_keeps_failing_stops_the_run_however_small_its_part() -> None:
    """One of its tasks alone does not: that one may be to blame."""
    good = [replace(rollout(Verdict.of(True)), task=replace(TASK, env="good"))] * 20
    bad = [replace(rollout(FAILED), task=replace(TASK, env="bad", reference={"n": n})) for n in (1, 2)]
    check_failures([*good, bad[0], bad[0]], 0.2)
    with pytest.raises(RunError, match=r"^env bad: 2 of 2 rollouts \(100%\) have no verdict: 2 timeout; "):
        check_failures([*good, *bad], 0.2)
    check_failures([*good, *bad], 1.0)


def test_groups_of_equal_rewards_leave_only_where_the_objective_says_so() -> None:
    """They stay in the metrics of rewards and of even groups."""
    even = Group(TASK, tuple(rollout(Verdict.of(True)) for _ in range(2)))
    uneven = Group(TASK, (rollout(Verdict.of(True)), rollout(Verdict.of(False))))
    for goal, left in ((K2(), 2), (Dapo(drop_even=False), 2), (Dapo(), 1)):
        scored = score([even, uneven], SPECS, goal, 0.2)
        assert len(scored.groups) == scored.metrics["train/groups"] == left
        assert scored.metrics["even_groups/e"] == 0.5
        assert scored.metrics["reward/e"] == 0.75
        assert scored.metrics["errors/groups_dropped"] == 0


def test_a_pending_verdict_needs_a_critic() -> None:
    with pytest.raises(RunError, match="no critic"):
        reward(rollout(Verdict.pending()), SPECS["e"])


def test_returns_without_verdicts_are_mapped_from_their_range() -> None:
    spec = EnvSpec(id="x", reward_range=[0.0, 4.0])
    assert reward(rollout(None, env_return=1.0), spec) == 0.25
    assert correct(rollout(None, env_return=4.0), spec)
    with pytest.raises(UserError, match=r"declare envs.e.reward_range"):
        reward(rollout(None), SPECS["e"])
    with pytest.raises(UserError, match=r"returned 5.0, outside"):
        reward(rollout(None, env_return=5.0), spec)
