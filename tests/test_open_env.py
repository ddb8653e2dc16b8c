"""The `open` environment: rows with rubrics, what is pending and what malformed, one line for what can't be used."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from k2rl_envs.open_env import OpenEnv
from k2rl_envs.text_corruptions import corruptions
from test_cli import Cli

from k2rl import rng
from k2rl.errors import UserError
from k2rl.rubrics import resolve
from k2rl.types import Status, Task, Verdict

LEVELS = {"criteria": "Is it\nkind?", **{f"score{n}_description": f"Kind {n}." for n in range(1, 6)}}
STANDARD = ("core", "prescriptive", "uncertainty")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    return str(path)


def rows(**columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"Tell me about {n}.", **columns} for n in range(40)]


def first(path: Path, found: list[dict[str, Any]], **arguments: Any) -> tuple[OpenEnv, Task]:
    env = OpenEnv(write(path / "a.jsonl", found), **arguments)
    return env, next(iter(env.tasks("train", 0)))


def test_plain_prompts_are_judged_by_the_standard_rubrics(tmp_path: Path) -> None:
    env, task = first(tmp_path, rows())
    assert env.open_ended
    assert (task.rubrics, task.answer, env.gold(task)) == (STANDARD, None, None)
    assert isinstance(task.prompt, str)
    assert Task.from_json(json.loads(json.dumps(task.to_json()))) == task


def test_nothing_is_decided_but_that_it_is_no_answer(tmp_path: Path) -> None:
    env, task = first(tmp_path, rows(answer="It is a number."))
    assert env.gold(task) == "It is a number."
    assert env.verify(task, "It is a number.") == Verdict.pending()
    assert {env.verify(task, blank).status for blank in ("", " \n\t")} == {Status.MALFORMED}


def test_rubrics_are_the_envs_and_the_rows(tmp_path: Path) -> None:
    own = "It names a town."
    assert first(tmp_path, rows(rubric=own))[1].rubrics == (*STANDARD, own)
    assert first(tmp_path, rows(rubric=[own, "asked_tone"]), rubrics=["core"])[1].rubrics == ("core", own, "asked_tone")
    assert first(tmp_path, rows(rubric=own), rubrics=[])[1].rubrics == (own,)
    assert first(tmp_path, rows(rubric=" "), rubrics="core")[1].rubrics == ("core",)
    task = first(tmp_path, rows(rubric=LEVELS), rubrics=[])[1]
    (rubric,) = resolve(task.rubrics)
    assert rubric.text == (
        "Is it kind? From the worst to the best:\n1. Kind 1.\n2. Kind 2.\n3. Kind 3.\n4. Kind 4.\n5. Kind 5."
    )


def test_a_system_prompt_comes_first(tmp_path: Path) -> None:
    task = first(tmp_path, rows(system="Be brief."))[1]
    assert [m["role"] for m in task.messages] == ["system", "user"]
    assert task.messages[0]["content"] == "Be brief."
    two = [{"prompt": f"Q{n}", "system": system} for n in range(20) for system in ("A", "B")]
    env, _ = first(tmp_path, [*two, *two])
    train, test = (list(env.tasks(split, 0)) for split in ("train", "test"))
    assert len(train) + len(test) == 40  # the same question to another persona is another task
    assert not {t.messages[1]["content"] for t in train} & {t.messages[1]["content"] for t in test}


def test_a_file_of_test_rows_and_columns_of_ones_own(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", [{"ask": f"Q{n}", "wanted": "It is kind."} for n in range(9)])
    test = write(tmp_path / "b.jsonl", [{"ask": f"Q{n}", "wanted": "It is kind."} for n in (3, 50)])
    env = OpenEnv(train, test, fields={"prompt": "ask", "rubric": "wanted"}, rubrics=["asked_tone"])
    assert {t.prompt for t in env.tasks("test", 0)} == {"Q3", "Q50"}
    assert {t.prompt for t in env.tasks("train", 0)} == {f"Q{n}" for n in range(9)} - {"Q3"}
    assert next(iter(env.tasks("test", 0))).rubrics == ("asked_tone", "It is kind.")


@pytest.mark.parametrize(
    ("columns", "arguments", "says"),
    [
        ({}, {"rubrics": []}, "line 1 has no rubric, and rubrics is empty"),
        ({}, {"rubrics": ["cor"]}, "no rubric 'cor' (did you mean 'core'?)"),
        ({}, {"rubrics": [1]}, "rubrics holds 1: it is a list"),
        ({"rubric": 3}, {}, "line 1, field 'rubric': must be text, a list of texts, or a criterion with score1"),
        ({"rubric": ["ok then", 3]}, {}, "field 'rubric': must be text"),
        ({"rubric": "clarit"}, {}, "field 'rubric': no rubric 'clarit' (did you mean 'clarity'?)"),
        ({"rubric": {**LEVELS, "score4_description": ""}}, {}, "has a text in score4_description, got ''"),
        ({"rubric": {"criteria": "Good?"}}, {}, "has a text in score1_description, got None"),
        ({"system": 1}, {}, "field 'system': must be text, got 1"),
        ({"answer": ["x"]}, {}, "field 'answer': must be text, got ['x']"),
        ({}, {"fields": {"promt": "x"}}, "unknown field 'promt' (did you mean 'prompt'?)"),
    ],
)
def test_what_can_not_be_used(columns: dict[str, Any], arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        first(tmp_path, rows(**columns), **arguments)
    assert says in str(error.value)


def test_corruptions_need_no_oracle(tmp_path: Path) -> None:
    env, task = first(tmp_path, rows())
    text = (
        "A number is a sign. It can be written in 10 ways. All of them are known to those who count every day at home."
    )
    assert env.corrupt(task, text, rng.generator("x")) == corruptions(text, rng.generator("x")) != {}


def test_biggen_is_known_by_its_columns(shared_data: Path, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    data = str(shared_data / "biggen/tasks_with_rubrics.jsonl")
    env = OpenEnv(data)
    train, test = list(env.tasks("train", 0)), list(env.tasks("test", 0))
    assert len(train) + len(test) == 765
    assert 50 < len(test) < 110
    for task in islice(test, 20):
        assert task.rubrics[:3] == STANDARD
        assert "From the worst to the best:\n1. " in task.rubrics[3]
        gold = env.gold(task)
        assert isinstance(gold, str)
        assert env.verify(task, gold) == Verdict.pending()
    k2rl = Cli(monkeypatch, capsys)
    report = k2rl.json("data", "check", data, "--env", "k2rl_envs.open_env:OpenEnv", "--arg", f"data={data}", "--json")
    assert (report["ok"], report["schema"]) == (765, "biggen")
    assert list(k2rl.json("data", "inspect", data, "--json")["schemas"]) == ["open"]
