"""Values over a run."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from k2rl.schedules import KINDS, Schedule


def test_without_an_end_it_is_constant() -> None:
    assert {Schedule(start=0.3).at(p / 10) for p in range(11)} == {0.3}


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "constant"])
def test_it_goes_from_start_to_end_and_stays(kind: str) -> None:
    schedule = Schedule(start=1.0, end=0.1, kind=kind, until=0.5)
    values = [schedule.at(p / 100) for p in range(101)]
    assert values[0] == pytest.approx(1.0)
    assert values[50:] == pytest.approx([0.1] * 51)
    assert all(a >= b for a, b in pairwise(values))


@pytest.mark.parametrize(
    ("kind", "middle"),
    [("constant", 1.0), ("linear", 0.55), ("cosine", 0.55), ("exponential", math.sqrt(0.1))],
)
def test_half_way(kind: str, middle: float) -> None:
    assert Schedule(start=1.0, end=0.1, kind=kind).at(0.5) == pytest.approx(middle)


def test_warmup_rises_from_zero_and_then_the_decay_begins() -> None:
    schedule = Schedule(start=1.0, end=0.0, warmup=0.2)
    assert [schedule.at(p) for p in (0.0, 0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(kind="cubic"),
        Schedule(until=0.0),
        Schedule(until=1.5),
        Schedule(warmup=-0.1),
        Schedule(warmup=0.5, until=0.5),
        Schedule(start=1.0, end=0.0, kind="exponential"),
        Schedule(start=math.nan),
        Schedule(end=math.inf),
    ],
)
def test_what_makes_no_sense_is_named(schedule: Schedule) -> None:
    assert schedule.problem()


def test_what_makes_sense_is_not() -> None:
    assert Schedule(start=1.0, end=0.1, kind="exponential", until=0.5, warmup=0.1).problem() is None
