"""The contract of LogicEnv's games: gold passes, splits disjoint, deterministic, hacks refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env
from k2rl_envs.countdown_solver import solve
from k2rl_envs.logic_env import GAMES, LogicEnv
from k2rl_rewards.countdown import evaluate
from tasks_contract import check_answers, check_tasks, gold, take

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


@pytest.mark.parametrize(("level", "count"), [(1, 3), (2, 4), (3, 4)])
def test_levels_of_twenty_four(level: int, count: int) -> None:
    env = LogicEnv(24, level=level)
    tasks = check_tasks(env, 20)
    check_answers(env, tasks)
    assert {len(t.reference["numbers"]) for t in tasks} == {count}
    assert {t.tags for t in tasks} == {("24", f"level-{level}")}


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
        ({"game": "reasoning_gym:sudoku", "level": 1}, "level has no effect"),
        ({"game": "sudoku:9"}, "unknown game"),
        ({"game": "sudoku", "level": 6}, "allowed are 1, 2, 3, 4, 5"),
        ({"game": "countdown", "data": "x.jsonl"}, "data has no effect"),
        ({"game": "countdown", "config": {"x": 1}}, "config has no effect"),
        ({"game": "knights", "test_share": 0.2}, "test_share has no effect with game knights without data"),
        ({"game": "knights", "data": "x.jsonl", "level": 1}, "level has no effect with game knights with data"),
    ],
)
def test_bad_arguments_are_the_users_error(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        LogicEnv(**arguments)
    assert told in str(caught.value)


FINGERPRINT = """
from itertools import islice
from k2rl.types import content_hash
from k2rl_envs.logic_env import GAMES, LogicEnv
for name in GAMES:
    if ":" not in name:
        env = LogicEnv(name, level=[1, 2, 3])
        tasks = [t for split in ("train", "test") for t in islice(env.tasks(split, 5), 12)]
        print(name, content_hash([[t.to_json(), t.id, env.gold(t)] for t in tasks]))
"""


def test_tasks_are_the_same_in_every_process() -> None:
    def printed(hash_seed: str) -> str:
        command = [sys.executable, "-c", FINGERPRINT]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    first = printed("1")
    assert len(first.splitlines()) == len(GAMES) - 1
    assert printed("2") == first


@pytest.mark.parametrize("game", [name for name in GAMES if ":" not in name])
def test_an_instruction_of_the_users_changes_no_puzzle(game: str) -> None:
    bare, told = (LogicEnv(game, level=1, instruction=text) for text in ("", "Please."))
    for a, b in zip(take(bare, 20), take(told, 20), strict=True):
        assert b.prompt == f"{a.prompt}\nPlease."
        assert (a.answer, a.reference) == (b.answer, b.reference)
        assert bare.gold(a) == told.gold(b)
        assert bare.verify(a, str(a.prompt)).score == 0.0


def test_the_table_of_games_names_them_all() -> None:
    assert LogicEnv.__doc__
    assert [name for name in GAMES if f"| `{name}`" in LogicEnv.__doc__] == list(GAMES)
