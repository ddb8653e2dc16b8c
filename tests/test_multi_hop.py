"""Multi-hop questions, answered from the prompt's text alone."""

from __future__ import annotations

import re

import pytest
from k2rl_envs.logic_env import LogicEnv
from tasks_contract import check_answers, check_tasks


def _answer(prompt: str) -> tuple[int, int]:
    """The answer, and how many facts about relations it takes."""
    facts = {(r, a): b for r, a, b in re.findall(r"The (\w+) of (\w+) is (\w+)\.", prompt)}
    owned = {who: int(n) for who, n in re.findall(r"(\w+) has (\d+) ", prompt)}
    asked = re.search(r"How many \w+ do (.+) and (.+) have together\?", prompt)
    assert asked
    total = hops = 0
    for description in asked.groups():
        *relations, who = re.sub(r"\bthe ", "", description).split(" of ")
        for relation in reversed(relations):
            who = facts[relation, who]
        total, hops = total + owned[who], hops + len(relations)
    return total, hops


@pytest.mark.parametrize(("level", "hops"), [(1, 1), (2, 2), (3, 3), (4, 5), (5, 7)])
def test_tasks(level: int, hops: int) -> None:
    env = LogicEnv("multi_hop", level=level)
    tasks = check_tasks(env, 60)
    check_answers(env, tasks)
    for task in tasks:
        assert _answer(str(task.prompt)) == (int(str(task.answer)), hops)
        assert str(env.gold(task)).count(" is ") == hops
