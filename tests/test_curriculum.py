"""Pools, mixture, order, resumption."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from k2rl import SingleTurnEnv, Split, Task, Verdict
from k2rl.curriculum import Curriculum, disjoint, fitting, pool
from k2rl.difficulty import Measured
from k2rl.errors import UserError
from k2rl.recipe import EnvSpec
from k2rl.types import End, Group, Rollout, Status


class Numbers(SingleTurnEnv):
    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        n = 0
        while self.count is None or n < self.count:
            yield Task(f"{split} {n // 2}")
            n += 1


def make(**sizes: int) -> Curriculum:
    pools = {name: pool(name, Numbers(), "train", 0, size) for name, size in sizes.items()}
    return Curriculum(pools, {"a": EnvSpec(id="a", weight=3), "b": EnvSpec(id="b")}, seed=5)


def test_pool_is_cut_named_and_distinct() -> None:
    tasks = pool("a", Numbers(), "train", 0, 10)
    assert [t.prompt for t in tasks] == [f"train {n}" for n in range(10)]
    assert {t.env for t in tasks} == {"a"}
    assert len(pool("a", Numbers(6), "train", 0, 10)) == 3


def test_tasks_that_raise_are_the_users_to_repair() -> None:
    class Raising(Numbers):
        def tasks(self, split: Split, seed: int) -> Iterable[Task]:
            yield Task("fine")
            raise KeyError("question")

    place = r"\(.*test_curriculum.py:\d+\)$"
    with pytest.raises(UserError, match=rf"^tasks\(\) of env a failed: KeyError: 'question' {place}"):
        pool("a", Raising(), "train", 0, 10)


def test_weights_hold_at_every_moment() -> None:
    names = [t.env for t in make(a=40, b=40).next(40)]
    assert Counter(names) == {"a": 30, "b": 10}
    for n in range(1, 41):
        assert abs(names[:n].count("a") - 0.75 * n) <= 1


def test_every_pass_covers_the_pool_in_another_order() -> None:
    tasks = [t.prompt for t in make(a=9, b=3).next(24) if t.env == "a"]
    assert sorted(tasks[:9]) == sorted(tasks[9:18])
    assert tasks[:9] != tasks[9:18]


def test_its_state_is_enough_to_go_on() -> None:
    whole = make(a=7, b=5).next(30)
    first = make(a=7, b=5)
    head = first.next(11)
    second = make(a=7, b=5)
    second.restore(first.state())
    assert head + second.next(19) == whole


def test_overlapping_splits_and_long_tasks_are_named() -> None:
    tasks = pool("a", Numbers(), "train", 0, 3)
    with pytest.raises(UserError, match="env a: 3 tasks are in both"):
        disjoint("a", tasks, tasks)
    fits = fitting(tasks, lambda t: int(str(t.prompt).split()[1]) * 10, 10)
    assert (len(fits.tasks), fits.left_out) == (2, 1)
    with pytest.raises(UserError, match="no task fits the model's context of 5 tokens"):
        fitting(tasks, lambda t: 50, 5)


def test_what_is_no_task_is_refused() -> None:
    class Wrong(SingleTurnEnv):
        def tasks(self, split: Split, seed: int) -> Iterable[Task]:
            yield "text"  # type: ignore[misc]

    class NoBudget(SingleTurnEnv):
        def tasks(self, split: Split, seed: int) -> Iterable[Task]:
            yield Task("x", budget=0)

    with pytest.raises(UserError, match=r"must yield k2rl\.Task, got str"):
        pool("a", Wrong(), "train", 0, 3)
    with pytest.raises(UserError, match="budget is 0: it must be 1 or more"):
        pool("a", NoBudget(), "train", 0, 3)


def one_env(order: str, rates: dict[int, float], count: int = 10, levels: bool = False, seed: int = 5) -> Curriculum:
    tasks = pool("a", Numbers(), "train", 0, count)
    if levels:
        tasks = [replace(t, tags=(f"level-{1 + n % 3}",)) for n, t in enumerate(tasks)]
    measured = {tasks[n].id: Measured(8, int(8 * rate)) for n, rate in rates.items()}
    return Curriculum({"a": tasks}, {"a": EnvSpec(id="a", order=order)}, seed, {"a": measured})


def shown(task: Task, *passed: bool) -> Group:
    verdicts = [Verdict.of(p) for p in passed]
    return Group(task, tuple(Rollout(task, k, (1,), (), End.STOP, (v,)) for k, v in enumerate(verdicts)))


def number(task: Task) -> int:
    return int(str(task.prompt).split()[1])


def test_prioritised_draws_in_proportion_to_one_minus_the_success_rate() -> None:
    curriculum = one_env("prioritised", {0: 0.0, 1: 0.5, 2: 0.75, 3: 1.0}, count=4)
    counts = Counter(number(curriculum.next(1)[0]) for _ in range(4000))
    total = 1 + 0.5 + 0.25 + 0.02
    for n, weight in enumerate([1, 0.5, 0.25, 0.02]):
        assert counts[n] / 4000 == pytest.approx(weight / total, abs=0.025)


def test_prioritised_follows_what_the_groups_show() -> None:
    curriculum = one_env("prioritised", {}, count=3)
    first, second, third = curriculum.pools["a"]
    curriculum.learn([shown(first, True, True), shown(second, True, False), shown(third, False, False)])
    assert list(curriculum.queues["a"].success_N) == [1.0, 0.5, 0.0]
    curriculum.learn([shown(first, False, False), shown(third, True, False)])
    assert list(curriculum.queues["a"].success_N) == [0.5, 0.5, 0.25]
    nothing = Verdict.failure(Status.TIMEOUT, "slow")
    curriculum.learn([Group(first, (Rollout(first, 0, (1,), (), End.ERROR, (nothing,)),))])
    assert curriculum.queues["a"].success_N[0] == 0.5


def test_a_task_never_tried_counts_as_the_mean_of_the_others() -> None:
    curriculum = one_env("prioritised", {0: 1.0, 1: 0.5}, count=3)
    counts = Counter(number(curriculum.next(1)[0]) for _ in range(3000))
    assert counts[2] / counts[1] == pytest.approx(0.25 / 0.5, abs=0.08)


def test_prioritised_gives_no_task_twice_at_once_unless_there_are_too_few() -> None:
    curriculum = one_env("prioritised", {0: 0.0, 1: 1.0}, count=6)
    for _ in range(20):
        assert len({t.id for t in curriculum.next(6)}) == 6
    assert len(curriculum.next(9)) == 9


def test_easy_to_hard_opens_the_pool_by_the_middle_of_the_run() -> None:
    rates = {n: n / 10 for n in range(10)}  # Task 9 is the easiest.
    curriculum = one_env("easy_to_hard", rates)
    assert {number(t) for t in curriculum.next(6, 0.0)} == {9, 8}
    assert {number(t) for t in curriculum.next(4, 0.25)} == {7, 6, 5, 4}
    assert {number(t) for t in curriculum.next(4, 0.5)} == {3, 2, 1, 0}
    assert curriculum.metrics()["curriculum/a/reach"] == 1.0
    assert curriculum.metrics()["curriculum/a/seen"] == 10


def test_easy_to_hard_goes_by_levels_where_nothing_is_measured() -> None:
    curriculum = one_env("easy_to_hard", {}, count=30, levels=True)
    assert {t.tags for t in curriculum.next(6, 0.0)} == {("level-1",)}
    with pytest.raises(UserError, match=r"envs\.a\.order=easy_to_hard needs envs\.a\.measured .*or a tag level-N"):
        one_env("easy_to_hard", {})


@pytest.mark.parametrize("order", ["uniform", "prioritised", "easy_to_hard"])
def test_the_state_of_every_order_is_enough_to_go_on(order: str) -> None:
    def play(curriculum: Curriculum, iterations: range) -> list[Any]:
        seen: list[Any] = []
        for iteration in iterations:
            tasks = curriculum.next(4, iteration / 10)
            curriculum.learn([shown(t, number(t) % 2 == 0, iteration % 3 == 0) for t in tasks])
            seen.append(([t.id for t in tasks], curriculum.metrics()))
        return seen

    rates = {n: n / 20 for n in range(15)}
    whole = play(one_env(order, rates, 20), range(10))
    first = one_env(order, rates, 20)
    head = play(first, range(4))
    second = one_env(order, rates, 20)
    second.restore(json.loads(json.dumps(first.state())))
    assert head + play(second, range(4, 10)) == whole
    assert play(one_env(order, rates, 20, seed=6), range(10)) != whole


def test_a_state_of_other_tasks_is_refused() -> None:
    state = one_env("prioritised", {0: 0.5}).state()
    for other in (one_env("prioritised", {0: 0.625}), one_env("prioritised", {0: 0.5}, count=9)):
        with pytest.raises(UserError, match="env a: its training tasks or their measured pass rates are not those"):
            other.restore(state)


def test_the_metrics_say_what_was_expected_of_the_tasks_handed_out() -> None:
    curriculum = one_env("uniform", {0: 0.25, 1: 0.75}, count=4)
    assert curriculum.metrics() == {"curriculum/a/seen": 0, "curriculum/a/pool": 4, "curriculum/a/success": 0.5}
    curriculum.next(4)
    assert curriculum.metrics()["curriculum/a/expected"] == 0.5
    assert "curriculum/a/expected" not in one_env("uniform", {}).metrics()
