"""Schemas are data: each is told from its columns, the user's columns come first, and what fits none is one line."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from k2rl_envs.math_env import MathEnv

from k2rl import schemas
from k2rl.errors import UserError
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve
from k2rl.rows import read_rows
from k2rl.schemas import detect, known


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def row_with(columns: list[str]) -> dict[str, Any]:
    """A row that has these columns, nested ones too."""
    row: dict[str, Any] = {}
    for column in (part for joined in columns for part in joined.split("+")):
        first, *rest = column.split(".")
        value: Any = "something"
        for step in reversed(rest):
            value = [value] if step.isdecimal() else {step: value}
        row[first] = value
    return row


@pytest.mark.parametrize(("kind", "name"), [(kind, s.name) for kind in schemas.kinds() for s in known(kind)])
def test_every_schema_is_told_from_its_columns(kind: str, name: str, tmp_path: Path) -> None:
    schema = next(s for s in known(kind) if s.name == name)
    row = row_with(list(schema.required.values())) | {"another": 1}
    found = detect(kind, jsonl(tmp_path / "a.jsonl", [row]))
    assert found == schema
    assert read_rows(tmp_path / "a.jsonl", found.fields, found.optional)[0].prompt


@pytest.mark.parametrize(
    ("kind", "file", "name"),
    [
        ("math", "gsm8k/train.jsonl", "question_answer"),
        ("math", "math/math_200.jsonl", "problem_solution"),
        ("math", "math/amc23.jsonl", "problem_answer"),
        ("math", "math/aime24.jsonl", "problem_answer"),
        ("math", "math/svamp.jsonl", "svamp"),
        ("math", "bbh/object_counting.json", "input_target"),
        ("code", "mbpp/mbpp.jsonl", "mbpp"),
        ("code", "code_contests/sample.jsonl", "contest"),
        ("knights", "knights_and_knaves/3ppl/train.parquet", "logic_rl"),
    ],
)
def test_real_files_need_no_field_map(kind: str, file: str, name: str, shared_data: Path) -> None:
    if file.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    assert detect(kind, shared_data / file).name == name


def test_the_users_columns_replace_those_of_a_schema(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"problem": "1+1", "answer": 3, "result": 2}])
    assert detect("math", path, {"answer": "result"}).fields["prompt"] == "problem"
    assert detect("math", path, {"prompt": "problem", "answer": "result"}).fields["answer"] == "result"
    assert detect("math", path, name="question_answer").fields["prompt"] == "question"


@pytest.mark.parametrize(
    ("row", "fields", "name", "message"),
    [
        (
            {"q": 1, "a": 2},
            None,
            None,
            r"has the columns a, q, which is no known format \(svamp: Body\+Question, Answer; ",
        ),
        ({"q": 1, "a": None}, None, None, "has the columns q, which is no known format"),
        ({"q": 1, "a": 2}, {"prompt": "p"}, None, "has no column 'p', named by fields.prompt: it has a, q"),
        (
            {"quest": 1},
            {"prompt": "quiest"},
            None,
            r"no column 'quiest', named by fields.prompt \(did you mean 'quest'\?\)",
        ),
        (
            {"q": 1},
            {"promt": "q"},
            None,
            r"unknown field 'promt' \(did you mean 'prompt'\?\): allowed are answer, level",
        ),
        ({"q": 1}, {"prompt": 3}, None, r"fields\.prompt must name a column, got 3"),
        ({"q": 1}, None, "gsm", "unknown format 'gsm': allowed are svamp, deepmath"),
        ({"q": 1}, {"level": "q"}, "verl", "format verl has the fields prompt, answer, not level"),
    ],
)
def test_what_fits_nothing_is_one_line(
    row: dict[str, Any], fields: Any, name: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        detect("math", jsonl(tmp_path / "a.jsonl", [row]), fields, name)
    assert "\n" not in str(caught.value)


def test_chat_messages_and_nested_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"What is {n}+1?"}], "reward_model": {"ground_truth": str(n + 1)}}
        for n in range(40)
    ]
    env = MathEnv(data=str(jsonl(tmp_path / "verl.jsonl", rows)), instruction="")
    for task in env.tasks("train", 0):
        assert int(str(task.prompt).split()[2].split("+")[0]) + 1 == int(str(task.answer))
    broken = jsonl(tmp_path / "b.jsonl", [*rows, {"prompt": [], "reward_model": {"ground_truth": "1"}}])
    with pytest.raises(UserError, match=r"b\.jsonl, line 41: no field 'prompt\.0\.content' for prompt"):
        MathEnv(data=str(broken))


def test_levels_become_tags(tmp_path: Path) -> None:
    levels = ["Level 3", "Level ?", 4, 2.5, None]
    rows = [{"problem": f"P{n}", "solution": "\\boxed{1}", "level": levels[n % 5]} for n in range(100)]
    env = MathEnv(data=str(jsonl(tmp_path / "a.jsonl", rows)), instruction="")
    for task in env.tasks("train", 0):
        level = levels[int(str(task.prompt)[1:]) % 5]
        expected = {"Level 3": ("level-3",), 4: ("level-4",), 2.5: ("level-2.5",)}.get(level, ())
        assert task.tags == ("data", *expected)


def test_the_test_file_may_have_another_schema(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "a.jsonl", [{"question": f"Q{n}", "answer": n} for n in range(9)])
    test = jsonl(tmp_path / "b.jsonl", [{"Body": f"B{n}.", "Question": "How many?", "Answer": n} for n in range(5)])
    env = MathEnv(data=str(train), test_data=str(test), instruction="")
    assert [len(list(env.tasks(split, 0))) for split in ("train", "test")] == [9, 5]
    assert {t.prompt for t in env.tasks("test", 0)} == {f"B{n}. How many?" for n in range(5)}


@pytest.mark.slow
def test_three_real_schemas_in_one_recipe(shared_data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from k2rl.loop import train

    files = {"gsm": "gsm8k/train.jsonl", "svamp": "math/svamp.jsonl", "comp": "math/math_200.jsonl"}
    weights = {"gsm": 3, "svamp": 2, "comp": 1}
    spec = {"id": "math", "pool": 60, "budget": {"tokens": 8}}
    envs = {
        n: {**spec, "weight": weights[n], "args": {"data": str(shared_data / f), "instruction": ""}}
        for n, f in files.items()
    }
    recipe = resolve(
        Recipe,
        {
            "model": {"path": "nano"},
            "envs": {**envs, "comp": {**envs["comp"], "order": "easy_to_hard"}},
            "run": {"iterations": 2, "eval_tasks": 0, "threads": 1},
            "rollout": {"tasks": 12, "group_size": 2},
        },
    )
    train(recipe, tmp_path / "run", quiet=True)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert [last[f"curriculum/{name}/seen"] for name in files] == [12, 8, 4]


def test_a_pool_of_real_rows_has_levels(shared_data: Path) -> None:
    env = MathEnv(data=str(shared_data / "math/math_200.jsonl"))
    tags = {tag for task in islice(env.tasks("train", 0), 200) for tag in task.tags}
    assert {f"level-{n}" for n in range(1, 6)} <= tags
