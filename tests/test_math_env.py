"""The contract of MathEnv: gold passes, splits disjoint, deterministic, data in three schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env
from k2rl_envs.levels import mixed
from k2rl_envs.math_env import MathEnv

from k2rl.errors import UserError
from k2rl.types import Split, Status, Task

DATA = Path(__file__).parents[2] / "shared" / "data"


def take(env: MathEnv, n: int, split: Split = "train", seed: int = 0) -> list[Task]:
    return list(islice(env.tasks(split, seed), n))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return str(path)


def test_it_is_a_gymnasium_env() -> None:
    env = MathEnv(level=1)
    check_env(env, skip_render_check=True)
    task = take(env, 1)[0]
    observation, info = env.reset(options={"task": task})
    assert (observation, info["task"]) == (task.prompt, task)
    _, reward, terminated, truncated, info = env.step(env.gold(task))
    assert (reward, terminated, truncated, info["verdict"].status.value) == (1.0, True, False, "correct")


@pytest.mark.parametrize("level", [1, 2, 3, 4, 5])
def test_generated_tasks(level: int) -> None:
    env = MathEnv(level=level, instruction="")
    train, test = take(env, 200), take(env, 200, "test")
    assert train == take(env, 200)
    assert train != take(env, 200, seed=1)
    assert len({t.prompt for t in train}) == 200
    assert not {t.prompt for t in train} & {t.prompt for t in test}
    assert all(env.verify(t, env.gold(t)).score == 1.0 for t in train + test)
    assert all(env.verify(t, str(t.prompt)).score == 0.0 for t in train)
    assert Task.from_json(json.loads(json.dumps(train[0].to_json()))).id == train[0].id
    assert train[0].tags == ("algebra" if "x" in train[0].prompt else "arithmetic", f"level-{level}")
    assert train[0].budget == 96


def test_splits_do_not_overlap_across_seeds() -> None:
    env = MathEnv(level=1)
    train = {t.prompt for seed in range(5) for t in take(env, 300, "train", seed)}
    assert not train & {t.prompt for seed in range(5) for t in take(env, 300, "test", seed)}


def test_the_instruction_is_one_more_line() -> None:
    bare, told = take(MathEnv(instruction=""), 1)[0], take(MathEnv(instruction="End with ####."), 1)[0]
    assert told.prompt == f"{bare.prompt}\nEnd with ####."
    assert bare.prompt == bare.reference["question"]
    assert "####" in take(MathEnv(), 1)[0].prompt


def test_levels_mix_by_share() -> None:
    def levels(level: Any) -> list[int]:
        return [t.reference["level"] for t in take(MathEnv(level=level), 1_000)]

    assert levels({2: 3, "4": 1.0}).count(4) == pytest.approx(250, abs=50)
    assert levels([1, 5]).count(1) == pytest.approx(500, abs=60)
    assert set(levels([3])) == {3}


def test_a_stream_with_few_distinct_tasks_ends() -> None:
    def few() -> Any:
        while True:
            yield from (Task("a"), Task("b"))

    tasks = mixed({1: few(), 2: iter([Task("c"), Task("a")])}, {1: 0.5, 2: 0.5}, "test")
    assert sorted(str(t.prompt) for t in tasks) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"level": 7}, "unknown level 7: allowed are 1, 2, 3, 4, 5, 6"),
        ({"level": True}, "unknown level True"),
        ({"level": 2.5}, "unknown level 2.5"),
        ({"level": []}, "no level is given"),
        ({"level": {}}, "no level is given"),
        ({"level": [1, 1]}, "level 1 is named twice"),
        ({"level": {1: 0}}, "share of level 1 must be a positive number"),
        ({"level": {1: "half"}}, "share of level 1"),
        ({"test_data": "x.jsonl"}, "test_data has no effect"),
        ({"fields": {"prompt": "q"}}, "fields has no effect"),
        ({"level": 2, "data": "x.jsonl"}, "level has no effect"),
        ({"data": "x.jsonl"}, "no data file x.jsonl"),
        ({"data": "x.jsonl", "fields": {"promt": "q"}}, "did you mean 'prompt'"),
    ],
)
def test_bad_arguments_are_the_users_error(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        MathEnv(**arguments)
    assert told in str(caught.value)


def test_answer_columns_of_every_kind(tmp_path: Path) -> None:
    answers = {
        "work <<1+1=2>> #### 1,072": ("1072", "work <<1+1=2>> #### 1,072"),
        "so $\\boxed{\\frac{1}{2}}$.": ("\\frac{1}{2}", "so $\\boxed{\\frac{1}{2}}$."),
        27.0: ("27", "#### 27"),
        0.25: ("0.25", "#### 0.25"),
        -3: ("-3", "#### -3"),
        " 12 ": ("12", "#### 12"),
        "3/4": ("3/4", "#### 3/4"),
    }
    rows = [{"question": f"Q{i}.{k}", "answer": a} for i, a in enumerate(answers) for k in range(20)]
    env = MathEnv(data=jsonl(tmp_path / "a.jsonl", rows), instruction="")
    tasks = take(env, 999) + take(env, 999, "test")
    assert len(tasks) == len(rows)
    by_kind = {int(str(t.prompt)[1:].split(".")[0]): t for t in tasks}
    assert [(by_kind[i].answer, env.gold(by_kind[i])) for i in range(len(answers))] == list(answers.values())
    assert all(env.verify(t, env.gold(t)).score == 1.0 for t in tasks)


@pytest.mark.parametrize("answer", ["", "####", "\\boxed{1", "word " * 100, True, [1], float("nan")])
def test_an_answer_that_cannot_be_read_names_its_place(answer: object, tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}", "answer": 1} for n in range(40)] + [{"question": "Q", "answer": answer}]
    with pytest.raises(UserError, match=r"a\.jsonl, line 41, field 'answer'"):
        MathEnv(data=jsonl(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize(
    ("file", "fields", "rows"),
    [
        ("gsm8k/train.jsonl", None, 7_473),
        ("math/math_200.jsonl", {"prompt": "problem", "answer": "solution"}, 200),
        ("math/amc23.jsonl", {"prompt": "problem"}, 40),
        ("math/aime24.jsonl", {"prompt": "problem"}, 30),
        ("math/svamp.jsonl", {"prompt": "Body+Question", "answer": "Answer"}, 1_000),
    ],
)
def test_real_data(file: str, fields: Mapping[str, str] | None, rows: int) -> None:
    if not (DATA / file).is_file():
        pytest.skip(f"no real data at {DATA / file}")
    env = MathEnv(data=str(DATA / file), fields=fields)
    train, test = take(env, 9_999), take(env, 9_999, "test")
    assert rows - 10 <= len(train) + len(test) <= rows
    assert not {t.prompt for t in train} & {t.prompt for t in test}
    assert train == take(env, 9_999)
    checked = train[:200]
    assert sum(env.verify(t, env.gold(t)).score == 1.0 for t in checked) >= 0.99 * len(checked)


def test_a_level_without_problems_of_the_kind_is_refused() -> None:
    with pytest.raises(UserError, match="level 1 has no algebra"):
        MathEnv(level=[1, 3], kinds="algebra")


def test_kinds_and_styles_of_generated_problems() -> None:
    algebra = MathEnv(level=3, kinds=["algebra"])
    assert {t.tags[0] for t in islice(algebra.tasks("train", 0), 30)} == {"algebra"}
    task = next(iter(algebra.tasks("train", 0)))
    worked = str(algebra.gold(task))
    assert MathEnv(level=3, styles={"direct": 1}).gold(task) == f"#### {task.answer}"
    assert str(MathEnv(level=3, styles={"rechecked": 1}).gold(task)).count("=") == 2 * worked.count("=")
    several = MathEnv(level=3, styles={"worked": 0.5, "direct": 0.25, "rechecked": 0.25})
    golds = [(t, several.gold(t)) for t in islice(several.tasks("train", 0), 200)]
    assert all(several.verify(t, str(g)).status is Status.CORRECT for t, g in golds)
    assert 30 <= sum("=" not in str(g) for _, g in golds) <= 70
    assert [several.gold(t) for t, _ in golds] == [g for _, g in golds]
