"""Cryptarithms: every solution that keeps the rules is right, nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from k2rl_envs.logic_env import LogicEnv
from k2rl_rewards.cryptarithm import Cryptarithm
from tasks_contract import check_answers, check_tasks, take

from k2rl.types import Verdict

MONEY = {"addends": ["SEND", "MORE"], "total": "MONEY", "given": {"M": 1}}
SOLVED = "S=9, E=5, N=6, D=7, M=1, O=0, R=8, Y=2"


def verdict(response: str, reference: Mapping[str, object] = MONEY) -> Verdict:
    return Cryptarithm()(response, reference)


@pytest.mark.parametrize(
    "response",
    [
        f"#### {SOLVED}",
        "#### d=7 e=5 m=1 n=6 o=0 r=8 s=9 y=2",
        "#### S = 9, E = 5, N = 6, D = 7, O = 0, R = 8 and Y = 2.",
        "####\nS: 9\nE: 5\nN: 6\nD: 7\nM: 1\nO: 0\nR: 8\nY: 2\n\n9567 + 1085 = 10652",
        "\\boxed{S=9; E=5; N=6; D=7; M=1; O=0; R=8; Y=2}",
        f"#### S=1 no\n#### {SOLVED}",
    ],
)
def test_right_digits(response: str) -> None:
    assert verdict(response) == Verdict.of(True)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (("Y=2", "Y=3"), "9567 + 1085 is 10652, not 10653"),
        (("Y=2", "Y=9"), "S and Y are both 9"),
        (("M=1", "M=2"), "M is 1, not 2"),
        (("S=9", "S=0"), "O and S are both 0"),
    ],
)
def test_wrong_digits_say_why(change: tuple[str, str], detail: str) -> None:
    assert verdict(f"#### {SOLVED.replace(*change)}") == Verdict.of(False, detail)


def test_no_number_starts_with_zero_and_every_solution_is_right() -> None:
    reference = {"addends": ["AB", "C"], "total": "AD", "given": {}}
    assert verdict("#### A=0, B=1, C=2, D=3", reference).detail == "AB starts with 0"
    assert verdict("#### A=5, B=1, C=2, D=3", reference).score == 1.0
    assert verdict("#### A=7, B=4, C=2, D=6", reference).score == 1.0
    assert verdict("#### A=1, B=2, C=0, D=2", reference).detail == "B and D are both 2"


@pytest.mark.parametrize(
    "response",
    [
        SOLVED,
        "",
        "####",
        "#### (letter)=(digit), …",
        f"#### {SOLVED}, X=3",
        f"#### {SOLVED}, S=9",
        "#### S=9, E=5, N=6, D=7, M=1, O=0, R=8",
        f"#### {SOLVED} or S=8",
        f"#### the digits are {SOLVED}",
        "#### S=9-1, E=5, N=6, D=7, M=1, O=0, R=8, Y=2",
        "#### S=09, E=5, N=6, D=7, M=1, O=0, R=8, Y=2",
        "#### S=٩, E=5, N=6, D=7, M=1, O=0, R=8, Y=2",
        "#### 9567 + 1085 = 10652",
        "#### S=E=9",
    ],
)
def test_unreadable_digits_are_malformed(response: str) -> None:
    found = verdict(response)
    assert (found.status.value, found.score) == ("malformed", 0.0)
    assert found.detail


@pytest.mark.parametrize(("level", "most"), [(1, 2), (2, 4), (3, 5), (4, 7), (5, 10)])
def test_tasks(level: int, most: int) -> None:
    env = LogicEnv("cryptarithm", level=level)
    tasks = check_tasks(env, 60)
    check_answers(env, tasks)
    asked = [str(t.answer).count("=") - len(t.reference["given"]) for t in tasks]
    assert max(asked) <= most
    assert sum(asked) / len(asked) > 0.7 * most


def test_no_sum_is_in_both_splits_under_other_letters() -> None:
    def sums(split: str) -> set[tuple[int, ...]]:
        found = set()
        for task in take(env, 500, "train" if split == "train" else "test"):
            digits = dict(pair.split("=") for pair in str(task.answer).split(", "))
            found.add(tuple(sorted(int("".join(digits[c] for c in word)) for word in task.reference["addends"])))
        return found

    env = LogicEnv("cryptarithm", level=2)
    assert not sums("train") & sums("test")
