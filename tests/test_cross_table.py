"""Cross-table questions, answered from the prompt's tables alone."""

from __future__ import annotations

import re

import pytest
from k2rl_envs.logic_env import LogicEnv
from tasks_contract import check_answers, check_tasks


def _tables(prompt: str) -> dict[str, list[dict[str, str]]]:
    tables = {}
    for title, body in re.findall(r"^(\w+):\n((?:\|.*\n)+)", prompt, re.MULTILINE):
        header, _, *rows = ([c.strip() for c in line.strip("|").split("|")] for line in body.strip().split("\n"))
        tables[title] = [dict(zip(header, row, strict=True)) for row in rows]
    return tables


def _answer(prompt: str) -> int:
    tables = _tables(prompt)
    asked = re.search(r"all the products( made by \w+)? that (.+) ordered cost", prompt)
    assert asked
    maker, who = (asked[1] or "").rpartition(" ")[2], asked[2].rpartition(" ")[2]
    products = {row["product"]: row for row in tables["Products"]}
    town = {row["customer"]: row["town"] for row in tables.get("Customers", [])}
    return sum(
        int(row["quantity"]) * int(products[row["product"]]["price"])
        for row in tables["Orders"]
        if who in (row["customer"], town.get(row["customer"]))
        and (not maker or products[row["product"]]["maker"] == maker)
    )


@pytest.mark.parametrize(("level", "tables"), [(1, 2), (2, 2), (3, 3), (4, 3), (5, 3)])
def test_tasks(level: int, tables: int) -> None:
    env = LogicEnv("cross_table", level=level)
    tasks = check_tasks(env, 60)
    check_answers(env, tasks)
    for task in tasks:
        assert len(_tables(str(task.prompt))) == tables
        assert _answer(str(task.prompt)) == int(str(task.answer))
