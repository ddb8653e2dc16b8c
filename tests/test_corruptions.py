"""What `Env.corrupt` makes of right answers: wrong by the reward, well-formed, as long, and of every kind."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from itertools import islice
from typing import Any

import numpy as np
import pytest
from k2rl_envs import math_env, programs
from k2rl_envs.code_env import CodeEnv
from k2rl_envs.logic_env import LogicEnv
from k2rl_envs.math_env import MathEnv

from k2rl.env import SingleTurnEnv
from k2rl.protocols import Sandbox
from k2rl.types import Status, Task

WORKED = {"wrong_step", "miscopied", "other_operation", "wrong_answer"}
ARRANGED = {"off_target", "wrong_number", "number_twice"}
PROGRAMS = {"other_constant", "other_operation", "other_order"}
CASES: dict[str, tuple[type[SingleTurnEnv], dict[str, Any], set[str]]] = {
    **{f"math {s}": (MathEnv, {"level": [1, 2, 3, 4, 5, 6], "styles": {s: 1}}, WORKED) for s in math_env.STYLES},
    "countdown": (LogicEnv, {"level": [1, 2, 3, 4, 5]}, ARRANGED | {"slip"}),
    "24": (LogicEnv, {"game": "24"}, ARRANGED),
    **{f"code {s}": (CodeEnv, {"level": [1, 2, 3, 4], "styles": {s: 1}}, PROGRAMS) for s in programs.STYLES},
}


def answered(env: SingleTurnEnv, n: int) -> list[tuple[Task, str]]:
    return [(task, str(env.gold(task))) for task in islice(env.tasks("train", 0), n)]


def corrupted(env: SingleTurnEnv, task: Task, response: str, seed: int = 0) -> Mapping[str, str]:
    return env.corrupt(task, response, np.random.default_rng(seed))


@pytest.mark.parametrize("name", CASES)
def test_every_kind_occurs_and_the_length_tells_nothing(name: str) -> None:
    make, arguments, kinds = CASES[name]
    env = make(**arguments)
    longer: dict[str, list[int]] = defaultdict(list)
    for i, (task, response) in enumerate(answered(env, 300)):
        made = corrupted(env, task, response, i)
        assert made == corrupted(env, task, response, i)
        assert response not in made.values()
        for kind, text in made.items():
            longer[kind].append(len(text) - len(response))
    assert set(longer) == kinds
    for differences in longer.values():
        assert len(differences) >= 150
        assert abs(np.mean(differences)) < 1
        assert np.mean(np.sign(differences) == 1) < 0.5
        assert np.mean(np.sign(differences) == -1) < 0.5


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("code")])
def test_the_reward_calls_them_wrong_and_they_can_not_be_made_worse(name: str) -> None:
    make, arguments, _ = CASES[name]
    env = make(**arguments)
    for i, (task, response) in enumerate(answered(env, 300)):
        for text in corrupted(env, task, response, i).values():
            assert env.verify(task, text).status is Status.WRONG
            assert corrupted(env, task, text) == {}


@pytest.mark.parametrize("style", ["checked", "direct", "explained"])
def test_corrupted_programs_fail_in_the_sandbox(style: str, jail: Sandbox) -> None:
    env = CodeEnv(level=[1, 2, 3, 4], styles={style: 1})
    for i, (task, response) in enumerate(answered(env, 40)):
        for text in corrupted(env, task, response, i).values():
            assert env.verify(task, text).status is Status.WRONG, text
            assert corrupted(env, task, text) == {}


def test_a_wrong_value_is_carried_on() -> None:
    env = MathEnv(level=3)
    task = next(t for t in env.tasks("train", 0) if t.reference["question"] == "Compute 5*8+14*6")
    found = {corrupted(env, task, env.gold(task), seed)["wrong_step"] for seed in range(40)}
    assert "5*8=40 14*6=94 40+94=134 #### 134" in found
    rechecked = "5*8=40 5*8=40 14*6=84 14*6=84 40+84=124 40+84=124 #### 124"
    found = {corrupted(env, task, rechecked, seed)["wrong_step"] for seed in range(40)}
    assert "5*8=40 5*8=40 14*6=94 14*6=94 40+94=134 40+94=134 #### 134" in found


@pytest.mark.parametrize(
    ("env", "response"),
    [
        (MathEnv(), "So 05*8=40, then I add. The answer is {answer}."),
        (MathEnv(), "\\boxed{{{answer}}}"),
        (MathEnv(), "Let me see: 1+1=3 #### {answer}"),
    ],
)
def test_other_ways_to_write_a_right_answer(env: SingleTurnEnv, response: str) -> None:
    for task, _ in answered(env, 50):
        made = corrupted(env, task, response.format(answer=task.answer))
        assert made
        assert all(env.verify(task, text).status is Status.WRONG for text in made.values())


def test_what_is_not_recognised_is_left_alone() -> None:
    puzzles, code = LogicEnv(level=1), CodeEnv(level=1)
    task, response = answered(puzzles, 1)[0]
    assert corrupted(puzzles, task, "no idea") == {}
    assert corrupted(puzzles, task, response.replace("#### ", "#### 0")) == {}
    task, response = answered(code, 1)[0]
    assert corrupted(code, task, response.replace("return ", "return 0 or ")) == {}
    assert corrupted(code, task, f"{response}\nprint(f(1))") == {}
    sudoku = LogicEnv(game="sudoku", level=1)
    assert corrupted(sudoku, *answered(sudoku, 1)[0]) == {}


def test_rows_of_a_file_get_another_answer(tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        json.dumps({"question": f"How many? {i}", "answer": f"Half is <<48/2=24>>24.\n#### 1,0{i}"})
        for i in range(10, 50)
    ]
    path.write_text("\n".join(rows), "utf-8")
    env = MathEnv(data=str(path))
    for task, response in answered(env, 20):
        made = corrupted(env, task, response)
        assert set(made) == {"wrong_answer"}
        assert len(made["wrong_answer"]) == len(response)
        assert env.verify(task, made["wrong_answer"]).status is Status.WRONG
