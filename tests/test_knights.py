"""Knights and knaves: everyone settled and nothing hedged; an independent solver agrees with every puzzle."""

from __future__ import annotations

import ast
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from k2rl_envs.knights_solver import solutions
from k2rl_envs.logic_env import LogicEnv
from k2rl_rewards.knights import KnightsAndKnaves, statement
from tasks_contract import check_answers, check_tasks, take

from k2rl.rows import read_rows
from k2rl.types import Verdict

NAMES, SOLUTION = ["Ann", "Bob", "Annabel"], [True, False, True]


def verdict(response: str) -> Verdict:
    return KnightsAndKnaves()(response, {"names": NAMES, "solution": SOLUTION})


@pytest.mark.parametrize(
    "response",
    [
        "#### " + statement(NAMES, SOLUTION),
        "#### (1) Ann is a knight\n(2) Bob is a knave\n(3) Annabel is a knight",
        "Ann is a knave? No. #### Bob: KNAVE, annabel = knight; ann - knight",
        "#### **Ann** is a knight, **Bob** is a knave, and **Annabel** is a knight.",
        "#### Ann is a knight, Bob is a knave, Annabel is a knight.\n\nThis does not contradict anything.",
        "\\boxed{1. Ann: knight\n2. Bob: knave\n3. Annabel: knight}",
        "#### Ann is a knight, Bob is a knave, Annabel is a knight, so Bob is a knave",
    ],
)
def test_right_statements(response: str) -> None:
    assert verdict(response) == Verdict.of(True)


def test_a_wrong_role_is_wrong_whoever_else_is_right() -> None:
    found = verdict("#### Ann is a knight, Bob is a knight, Annabel is a knave")
    assert found == Verdict.of(False, "wrong about Bob, Annabel")


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        ("", "no final answer"),
        ("####", "empty"),
        ("#### Ann is a knight, Bob is a knave", "Annabel"),
        ("Ann is a knight, Bob is a knave, Annabel is a knight", "no final answer"),
        ("#### x Ann is a knight, Bob is a knave, Annabel is a knight", "can't read 'x Ann"),
        ("#### Ann is a knight, Bob is a knave, Annabel is a knight, Zoe is a knight", "can't read 'Zoe"),
        ("#### Ann is a knight, Bob is a knave, Annabel is a knight. Not really", "can't read 'Not"),
        ("#### Ann is a knight, Bob is a knight or a knave, Annabel is a knight", "or a knave"),
        ("#### Ann is a knight, Bob is a knight, Bob is a knave, Annabel is a knight", "Bob"),
        ("#### Ann is a knight, Bob is not a knight, Annabel is a knight", "Bob"),
        ("#### Ann is a knight, Bob is either a knave, Annabel is a knight", "Bob"),
        ("#### Ann is a knight, Bob is knight/knave, Annabel is a knight", "/knave"),
        ("#### Suppose Ann is a knight. Then Ann is a knave. Bob is a knave. Annabel is a knight.", "Suppose"),
        ("#### (name) is a knight, (name) is a knave", "(name)"),
        ("#### Ann says that Bob is a knave. Who is a knight and who is a knave?", "Ann"),
        ("#### " + "Ann is a knight " * 10_000, "characters"),
    ],
)
def test_unsettled_statements_are_malformed(response: str, detail: str) -> None:
    found = verdict(response)
    assert (found.status.value, found.score) == ("malformed", 0.0)
    assert detail in found.detail


def test_a_letter_that_only_looks_like_the_name() -> None:
    reference = {"names": ["Kim"], "solution": [True]}
    assert KnightsAndKnaves()("#### Kim is a knight", reference).score == 1.0
    assert KnightsAndKnaves()("#### K\u0131m is a knight", reference).status.value == "malformed"


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_generated_puzzles_have_one_solution(level: int) -> None:
    env = LogicEnv("knights", level=level)
    tasks = check_tasks(env, 30)
    check_answers(env, tasks)
    for task in tasks:
        names, solution = task.reference["names"], task.reference["solution"]
        assert solutions(task.reference["statements"]) == [tuple(solution)]
        assert [tuple(solution)] == [
            roles
            for roles in product((True, False), repeat=len(names))
            if all(_true(said, names, roles) == role for said, role in zip(_said(task.prompt), roles, strict=True))
        ]


def _said(prompt: Any) -> list[str]:
    """The quotes in a prompt, read without the generator's help."""
    return [part.partition('."')[0] for part in str(prompt).split('says: "')[1:]]


def _true(said: str, names: list[str], roles: tuple[bool, ...]) -> bool:
    for name, role in zip(names, roles, strict=True):
        said = said.replace(f"{name} is a knight", str(role)).replace(f"{name} is a knave", str(not role))
    said = said.replace("if and only if", "==").removeprefix("if ").replace(" then ", " <= ")
    return bool(eval(said, {"__builtins__": {}}))


def test_no_puzzle_is_in_both_splits_under_other_names() -> None:
    env = LogicEnv("knights", level=1)
    train, test = (
        {str(order) for t in take(env, 300, split) for order in _renamed(t.reference["statements"])}
        for split in ("train", "test")
    )
    assert not train & test


def _renamed(statements: list[Any]) -> list[list[Any]]:
    """A puzzle of two people, and the same with the two exchanged."""

    def swap(said: Any) -> Any:
        return 1 - said if isinstance(said, int) else [swap(s) for s in said] if isinstance(said, list) else said

    return [statements, [swap(s) for s in reversed(statements)]]


@pytest.mark.parametrize(
    ("statements", "expected"),
    [
        ([["lying", 0]], []),
        ([["telling-truth", 0]], [(True,), (False,)]),
        ([["->", ["telling-truth", 0], ["lying", 1]], ["not", ["lying", 0]]], []),
        ([["<=>", ["lying", 0], ["lying", 1]], ["or", ["lying", 0], ["lying", 1]]], [(False, True)]),
    ],
)
def test_the_solver_counts_every_solution(statements: list[Any], expected: list[tuple[bool, ...]]) -> None:
    assert solutions(statements) == expected


def test_the_solver_knows_no_other_statements() -> None:
    with pytest.raises(ValueError, match="not a statement"):
        solutions([["says", 0]])


@pytest.mark.parametrize("people", [3, 4, 5])
def test_the_solver_agrees_with_real_puzzles(shared_data: Path, people: int) -> None:
    pytest.importorskip("pyarrow", reason="reading parquet needs the extra `parquet`")
    fields = {"prompt": "quiz", "solution": "solution", "statements": "statements"}
    rows = read_rows(shared_data / f"knights_and_knaves/{people}ppl/train.parquet", fields)
    assert len(rows) == 900
    for row in rows:
        assert solutions(ast.literal_eval(row.values["statements"])) == [tuple(row.values["solution"])]
