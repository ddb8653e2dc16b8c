"""Sudokus: the checker's contract, and one solution per puzzle."""

from __future__ import annotations

import pytest
from k2rl_envs.logic_env import LogicEnv
from k2rl_envs.sudoku import solutions
from k2rl_rewards.sudoku import Sudoku
from tasks_contract import check_answers, check_tasks, take

from k2rl.types import Verdict

GRID = [[1, 0, 3, 0], [3, 4, 0, 2], [2, 0, 4, 3], [4, 3, 2, 1]]
SOLVED = "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1"


def verdict(response: str, grid: list[list[int]] = GRID) -> Verdict:
    return Sudoku()(response, {"grid": grid, "box": [2, 2]})


@pytest.mark.parametrize(
    "response",
    [
        f"####\n{SOLVED}",
        f"#### {SOLVED}\n\nEvery row holds 1 to 4.",
        "#### 1234 3412 2143 4321",
        "#### 1234341221434321",
        "####\n```\n|1 2|3 4|\n|3 4|1 2|\n+---+---+\n|2 1|4 3|\n|4 3|2 1|\n```",
        f"\\boxed{{{SOLVED}}}",
        f"#### 4 4 4 4\nno\n####\n{SOLVED}",
    ],
)
def test_right_grids(response: str) -> None:
    assert verdict(response) == Verdict.of(True)


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ("1 2 3 4  3 4 2 1  2 1 4 3  4 3 1 2", "row 2, column 4 is 1, given 2"),
        ("1 4 3 2  3 4 1 2  2 1 4 3  4 3 2 1", "column 2 has no 2"),
        ("1 2 3 2  3 4 1 2  2 1 4 3  4 3 2 1", "row 1 has no 4"),
    ],
)
def test_wrong_grids_say_why(answer: str, detail: str) -> None:
    assert verdict(f"#### {answer}") == Verdict.of(False, detail)


def test_boxes_count_and_every_solution_is_right() -> None:
    blank = [[0] * 4 for _ in range(4)]
    assert verdict("#### 1234 2341 3412 4123", blank).detail == "the box at row 1, column 1 has no 4"
    found = list(solutions(blank, (2, 2)))
    assert len(found) == 288
    assert all(verdict(f"#### {grid}".replace("[", "").replace("]", ""), blank).score == 1.0 for grid in found)


@pytest.mark.parametrize(
    "response",
    [
        SOLVED,
        "",
        "####",
        "#### 1 _ 3 _\n3 4 _ 2\n2 _ 4 3\n4 3 2 1",
        f"#### {SOLVED} 1",
        f"#### {SOLVED[:-2]}",
        f"#### {SOLVED}\nor\n{SOLVED}",
        f"#### the grid is {SOLVED}",
        "#### 0000 0000 0000 0000",
        "#### 1235 3412 2143 4321",
        "#### ١234 3412 2143 4321",
        "#### 1.0 2 3 4 3 4 1 2 2 1 4 3 4 3 2 1",
    ],
)
def test_unreadable_grids_are_malformed(response: str) -> None:
    found = verdict(response)
    assert (found.status.value, found.score) == ("malformed", 0.0)
    assert found.detail


@pytest.mark.parametrize(("level", "size", "empty"), [(1, 4, 4), (2, 4, 9), (3, 6, 16), (4, 9, 25), (5, 9, 45)])
def test_tasks(level: int, size: int, empty: int) -> None:
    env = LogicEnv("sudoku", level=level)
    tasks = check_tasks(env, 20 if size < 9 else 10)
    check_answers(env, tasks)
    for task in tasks:
        grid = task.reference["grid"]
        assert len(grid) == size
        assert sum(row.count(0) for row in grid) == empty
        assert len(list(solutions(grid, tuple(task.reference["box"])))) == 1


def test_no_solution_is_in_both_splits() -> None:
    env = LogicEnv("sudoku", level=1)
    train, test = ({t.answer for t in take(env, 300, split)} for split in ("train", "test"))
    assert len(test) > 30
    assert not train & test


def test_clashing_givens_have_no_solution() -> None:
    assert not list(solutions([[1, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4], (2, 2)))
