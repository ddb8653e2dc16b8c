"""Morse code: the table is right, tasks of every level stand up to the contract."""

from __future__ import annotations

import pytest
from k2rl_envs.logic_env import LogicEnv
from k2rl_envs.morse import CODE, encode
from tasks_contract import check_answers, check_tasks


def test_the_code() -> None:
    assert encode("SOS AT 10") == "... --- ... / .- - / .---- -----"
    assert encode("PARIS XYZ 27") == ".--. .- .-. .. ... / -..- -.-- --.. / ..--- --..."
    assert len(set(CODE.values())) == len(CODE) == 36


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_tasks(level: int) -> None:
    env = LogicEnv("morse", level=level)
    tasks = check_tasks(env, 60)
    check_answers(env, tasks)
    decode = {code: sign for sign, code in CODE.items()}
    for task in tasks:
        code = str(task.prompt).partition("words): ")[2].partition("\n")[0]
        assert " ".join("".join(decode[c] for c in word.split()) for word in code.split(" / ")) == task.answer
