"""Pools, mixture, order, resumption."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from k2rl import SingleTurnEnv, Split, Task
from k2rl.curriculum import Curriculum, disjoint, fitting, pool
from k2rl.errors import UserError
from k2rl.recipe import EnvSpec


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
