"""The contract of LogicEnv's games: gold passes, splits disjoint, deterministic, hacks refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env
from k2rl_envs.countdown_solver import solve
from k2rl_envs.logic_env import LogicEnv
from k2rl_rewards.countdown import evaluate
from tasks_contract import check_tasks, gold, take

from k2rl.errors import UserError
from k2rl.types import Status

KNIGHTS = Path(__file__).parents[2] / "shared" / "data" / "knights_and_knaves" / "3ppl" / "train.parquet"


def test_it_is_a_gymnasium_env() -> None:
    env = LogicEnv(level=2)
    check_env(env, skip_render_check=True)
    task = take(env, 1)[0]
    env.reset(options={"task": task})
    assert env.step(gold(env, task))[1] == 1.0


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_countdown(level: int) -> None:
    task = check_tasks(LogicEnv("countdown", level=level, instruction=""), 200)[0]
    numbers, target = task.reference["numbers"], task.reference["target"]
    assert task.prompt == f"Use {' '.join(map(str, numbers))} to make {target}"
    assert task.tags == ("countdown", f"level-{level}")


def test_countdown_gold_does_not_depend_on_name_or_instruction() -> None:
    bare, told = LogicEnv(level=3, instruction=""), LogicEnv(level=3, instruction="Please.")
    assert [bare.gold(t) for t in take(bare, 50)] == [told.gold(t) for t in take(told, 50)]
    assert take(told, 1)[0].prompt == f"{take(bare, 1)[0].prompt}\nPlease."


def test_twenty_four() -> None:
    env = LogicEnv(24)
    train, test = check_tasks(env, 50), take(env, 9_999, "test")
    assert 150 < len(test) < 400
    hands = [tuple(sorted(t.reference["numbers"])) for t in test]
    assert len(set(hands)) == len(hands)
    assert not {tuple(sorted(t.reference["numbers"])) for t in train} & set(hands)


@pytest.mark.parametrize(
    ("numbers", "solvable"),
    [((3, 3, 8, 8), True), ((1, 5, 5, 5), True), ((1, 1, 1, 1), False), ((13, 13, 13, 13), False)],
)
def test_the_solver_is_exact(numbers: tuple[int, ...], solvable: bool) -> None:
    found = solve(numbers, 24)
    assert (found is not None) == solvable
    if found:
        value, used = evaluate(found)
        assert value == 24
        assert tuple(sorted(used)) == numbers


def test_knights_on_real_puzzles() -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    if not KNIGHTS.is_file():
        pytest.skip(f"no real data at {KNIGHTS}")
    env = LogicEnv("knights", data=str(KNIGHTS))
    train = check_tasks(env, 200)
    assert len(take(env, 9_999)) + len(take(env, 9_999, "test")) == 900
    assert train[0].tags == ("knights", "people-3")
    flipped = gold(env, train[0]).replace("knight", "x").replace("knave", "knight").replace("x", "knave")
    assert env.verify(train[0], flipped).status is Status.WRONG


def test_knights_from_json_lines(tmp_path: Path) -> None:
    rows = [
        {"q": f"Ann says {n}. Who is what?", "who": ["Ann", "Bob"], "solution": [n % 2 == 0, True]} for n in range(60)
    ]
    path = tmp_path / "k.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    fields = {"prompt": "q", "names": "who"}
    check_tasks(LogicEnv("knights", data=str(path), fields=fields, test_share=0.3), 20)
    rows[7]["solution"] = [True]
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(UserError, match=r"k\.jsonl, line 8, field 'solution': 1 entries for 2 names"):
        LogicEnv("knights", data=str(path), fields=fields)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"game": "contdown"}, "did you mean 'countdown'"),
        ({"game": "reasoning_gym"}, "unknown game"),
        ({"game": "reasoning_gym:suduko"}, "did you mean 'sudoku'"),
        ({"game": "reasoning_gym:sudoku", "config": {"min_emty": 1}}, "did you mean 'min_empty'"),
        ({"game": "reasoning_gym:sudoku", "config": {"min_empty": -1}}, "refuses this config of sudoku"),
        ({"game": "reasoning_gym:sudoku", "config": {"seed": 1}}, "config.seed"),
        ({"game": "countdown", "level": 9}, "unknown level 9"),
        ({"game": "24", "level": 1}, "level has no effect"),
        ({"game": "countdown", "data": "x.jsonl"}, "data has no effect"),
        ({"game": "countdown", "config": {"x": 1}}, "config has no effect"),
        ({"game": "knights"}, "needs data"),
    ],
)
def test_bad_arguments_are_the_users_error(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        LogicEnv(**arguments)
    assert told in str(caught.value)
