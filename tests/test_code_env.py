"""The contract of CodeEnv: generated tasks, MBPP, HumanEval and contest rows, and what is told about bad ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from gymnasium.utils.env_checker import check_env
from k2rl_envs import code_rows
from k2rl_envs.code_env import CodeEnv
from k2rl_rewards.program_tests import program_tests
from k2rl_rewards.unit_tests import UnitTests

from k2rl import schemas
from k2rl.errors import UnavailableError, UserError
from k2rl.protocols import Sandbox
from k2rl.rows import read_rows
from k2rl.types import Split, Status, Task

MBPP = {
    "text": "Write a function to add one.",
    "code": "def add_one(x):\r\n    return x + 1",
    "task_id": 1,
    "test_setup_code": "",
    "test_list": ["assert add_one(1) == 2", "assert add_one(4) == 5"],
    "challenge_test_list": [],
}
HUMANEVAL = {
    "task_id": "Test/0",
    "prompt": 'def add_one(x: int) -> int:\n    """Add one."""\n',
    "canonical_solution": "    return x + 1\n",
    "test": "def check(candidate):\n    for n in range(3):\n        assert candidate(n) == n + 1\n",
    "entry_point": "add_one",
}
CONTEST = {
    "content": "Read a number. Print the next one.",
    "test": json.dumps([{"input": {"stdin": "1\n"}, "output": {"stdout": "2\n"}}]),
    "solution": "print(int(input()) + 1)",
}


def take(env: CodeEnv, n: int, split: Split = "train", seed: int = 0) -> list[Task]:
    return list(islice(env.tasks(split, seed), n))


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return str(path)


def many(row: Mapping[str, Any], prompt: str, n: int = 30) -> list[dict[str, Any]]:
    """Rows that differ in their prompt."""
    return [{**row, prompt: f"{row[prompt]}# {i}"} for i in range(n)]


def test_it_is_a_gymnasium_env(jail: Sandbox) -> None:
    env = CodeEnv(level=1)
    check_env(env, skip_render_check=True)
    task = take(env, 1)[0]
    observation, info = env.reset(options={"task": task})
    assert (observation, info["task"]) == (task.prompt, task)
    _, reward, terminated, truncated, info = env.step(str(env.gold(task)))
    assert (reward, terminated, truncated, info["verdict"].status.value) == (1.0, True, False, "correct")


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_generated_tasks(jail: Sandbox, level: int) -> None:
    env = CodeEnv(level=level, instruction="", styles={"checked": 0.4, "direct": 0.3, "explained": 0.3})
    train, test = take(env, 200), take(env, 200, "test")
    assert train == take(env, 200)
    assert train != take(env, 200, seed=1)
    assert len({t.prompt for t in train}) == 200
    assert not {t.prompt for t in train} & {t.prompt for t in test}
    assert Task.from_json(json.loads(json.dumps(train[0].to_json()))) == train[0]
    assert train[0].tags == (train[0].reference["program"]["takes"], f"level-{level}")
    golds = [str(env.gold(t)) for t in train]
    assert golds == [env.gold(t) for t in train]
    assert {g.split()[0] for g in golds} == {"#", "def", "Let"}
    for task, gold in zip(train[:20], golds, strict=False):
        assert env.verify(task, gold).status is Status.CORRECT
        assert gold not in str(task.prompt)
        hard_coded = f"def f(x): return {task.reference['cases'][0][1]!r}"
        assert env.verify(task, hard_coded).score == 0.0
        assert env.verify(task, str(task.prompt)).score == 0.0


def test_a_pool_is_large_enough() -> None:
    env = CodeEnv(level={2: 0.5, 3: 0.5}, instruction="")
    assert len({t.id for t in take(env, 5_000)}) == 5_000


def test_styles_instruction_and_levels() -> None:
    task = take(CodeEnv(level=3, instruction=""), 1)[0]
    assert str(CodeEnv(styles={"direct": 1}).gold(task)).startswith("def f(x): return ")
    assert str(CodeEnv(styles={"explained": 1}).gold(task)).startswith("Let us start with ")
    assert str(CodeEnv().gold(task)).startswith("# ")
    told = take(CodeEnv(level=3, instruction="In Python."), 1)[0]
    assert told.prompt == f"{task.prompt}\nIn Python."
    levels = [t.reference["level"] for t in take(CodeEnv(level={1: 1, 3: 3}), 400)]
    assert levels.count(3) == pytest.approx(300, abs=40)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"level": 5}, "unknown level 5: allowed are 1, 2, 3, 4"),
        ({"styles": {"chekced": 1}}, "unknown style 'chekced' (did you mean 'checked'?)"),
        ({"test_data": "x.jsonl"}, "test_data has no effect"),
        ({"format": "mbpp"}, "format has no effect"),
        ({"gold": "drop"}, "gold has no effect"),
        ({"show_tests": 2}, "show_tests has no effect"),
        ({"level": 2, "data": "x.jsonl"}, "level has no effect"),
        ({"data": "x.jsonl"}, "no data file x.jsonl"),
        ({"data": "x.jsonl", "format": "mbp"}, "unknown format 'mbp' (did you mean 'mbpp'?)"),
        ({"data": "x.jsonl", "fields": {"test_list": "t"}}, "unknown field 'test_list'"),
        ({"data": "x.jsonl", "fields": {"prompt": 3}}, "fields.prompt must name a column, got 3"),
        ({"data": "x.jsonl", "format": "mbpp", "fields": {"io": "t"}}, "format mbpp has the fields prompt, solution"),
        ({"data": "x.jsonl", "show_tests": -1}, "show_tests must be a whole number of 0 or more, got -1"),
        ({"data": "x.jsonl", "gold": "maybe"}, "unknown gold 'maybe': allowed are check, drop, trust"),
        ({"limits": {"cpus": 1}}, "unknown limit 'cpus'"),
        ({"limits": 3}, "limits must map names to numbers, got 3: allowed are cpu_s"),
        ({"share": "maybe"}, "share must be true or false, got 'maybe'"),
    ],
)
def test_bad_arguments_are_the_users_error(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        CodeEnv(**arguments)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "prompt", "gold"),
    [
        (many(MBPP, "text"), "Write a function to add one.# 0\nIt should pass this test:\nassert add_one(1) == 2",
         "def add_one(x):\r\n    return x + 1"),
        (many(HUMANEVAL, "prompt"),
         'Complete this program:\n```python\ndef add_one(x: int) -> int:\n    """Add one."""\n# 0\n```',
         'def add_one(x: int) -> int:\n    """Add one."""\n# 0\n    return x + 1\n'),
        (many(CONTEST, "content"), "Read a number. Print the next one.# 0", "print(int(input()) + 1)"),
        (many({"prompt": "Add one.", "tests": ["assert f(1) == 2"]}, "prompt"),
         "Add one.# 0\nIt should pass this test:\nassert f(1) == 2", None),
        (many({"prompt": "Add one.", "fn": "f", "cases": [[[1, "a"], 2]]}, "prompt"),
         "Add one.# 0\nIt should pass this test:\nassert f(1, 'a') == 2", None),
        (many({"prompt": "Add one.", "io": [{"stdin": "1", "stdout": "2"}]}, "prompt"), "Add one.# 0", None),
    ],
)  # fmt: skip
def test_formats_are_told_from_their_columns(
    jail: Sandbox, tmp_path: Path, rows: list[dict[str, Any]], prompt: str, gold: str | None
) -> None:
    env = CodeEnv(data=jsonl(tmp_path / "rows.jsonl", rows), instruction="")
    found = {str(t.prompt): t for t in take(env, 99) + take(env, 99, "test")}
    assert len(found) == 30
    assert env.gold(found[prompt]) == gold
    if gold is not None:
        assert env.verify(found[prompt], gold).status is Status.CORRECT
        assert env.verify(found[prompt], "def add_one(x): return None").score == 0.0


def test_fields_and_shown_tests(jail: Sandbox, tmp_path: Path) -> None:
    rows = many({"task": "Add one.", "asserts": MBPP["test_list"], "code": MBPP["code"]}, "task")
    fields = {"prompt": "task", "tests": "asserts", "solution": "code"}
    env = CodeEnv(data=jsonl(tmp_path / "a.jsonl", rows), fields=fields, show_tests=2, instruction="Go.")
    prompt = "Add one.# 1\nIt should pass these tests:\nassert add_one(1) == 2\nassert add_one(4) == 5\nGo."
    tasks = {t.prompt: t for t in take(env, 99) + take(env, 99, "test")}
    assert env.verify(tasks[prompt], str(env.gold(tasks[prompt]))).status is Status.CORRECT
    none = CodeEnv(data=str(tmp_path / "a.jsonl"), fields=fields, show_tests=0, instruction="")
    assert "Add one.# 1" in {t.prompt for t in take(none, 99) + take(none, 99, "test")}
    with pytest.raises(
        UserError, match=r"has the columns asserts, code, task, which is no known format \(mbpp: text, "
    ):
        CodeEnv(data=str(tmp_path / "a.jsonl"))
    with pytest.raises(
        UserError, match=r"a\.jsonl has no column 'tusk', named by fields\.prompt \(did you mean 'task'\?\)"
    ):
        CodeEnv(data=str(tmp_path / "a.jsonl"), fields={"prompt": "tusk"})


def test_the_same_words_with_other_tests_are_another_task(jail: Sandbox, tmp_path: Path) -> None:
    other = {**MBPP, "code": "def plus_one(x): return x + 1", "test_list": ["assert plus_one(1) == 2"]}
    env = CodeEnv(
        data=jsonl(tmp_path / "a.jsonl", [MBPP, other, MBPP]),
        test_data=jsonl(tmp_path / "b.jsonl", many(MBPP, "text", 2)),
    )
    assert len(take(env, 9)) == 2


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({**MBPP, "test_list": []}, "field 'test_list': tests is empty"),
        ({**MBPP, "test_list": None}, "no field 'test_list' for tests"),
        ({**MBPP, "test_list": ["assert add_one(1) =="]}, "field 'test_list': tests[0] does not parse"),
        ({**MBPP, "test_setup_code": "def"}, "field 'test_list': setup does not parse"),
        ({**MBPP, "code": 3}, "field 'code': a solution must be the text of a program, got int"),
        ({**MBPP, "text": ""}, "field 'text': a prompt must be text"),
        (
            {**MBPP, "code": "def add_one(x): return x"},
            "field 'code': the row's own solution fails: 2 of 2 tests failed",
        ),
        ({**MBPP, "code": "def add_one(x) return x"}, "field 'code': the row's own solution fails: SyntaxError"),
        ({**MBPP, "code": ""}, "field 'code': the row's own solution fails: the program is empty"),
    ],
)
def test_a_bad_row_is_named_with_file_and_line(jail: Sandbox, tmp_path: Path, row: dict[str, Any], told: str) -> None:
    rows = [*many(MBPP, "text"), row]
    with pytest.raises(UserError) as caught:
        CodeEnv(data=jsonl(tmp_path / "a.jsonl", rows))
    assert str(caught.value).startswith(f"{tmp_path}/a.jsonl, line 31")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_contest_rows(tmp_path: Path) -> None:
    for given, told in (
        ("[", "neither a list nor JSON"),
        ("{}", "must be a list of inputs and outputs, got dict"),
        ([3], "[0] must hold an input and an output, got int"),
        ([{"input": "1"}], "io[0] must have the texts stdin and stdout"),
        ([], "io is empty"),
    ):
        with pytest.raises(UserError, match=r"a\.jsonl, line 1, field 'test': ") as caught:
            CodeEnv(data=jsonl(tmp_path / "a.jsonl", [{**CONTEST, "test": given}, *many(CONTEST, "content")]))
        assert told in str(caught.value)


def test_failing_solutions_are_dropped_or_trusted(
    jail: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [{**MBPP, "text": f"Bad {n}", "code": "def add_one(x): return x"} for n in range(2)]
    data = jsonl(tmp_path / "a.jsonl", [*many(MBPP, "text"), *bad])
    with pytest.raises(UserError, match=r"line 31, .* \(also .*line 32\); gold: drop leaves such rows out"):
        CodeEnv(data=data)
    for _ in range(2):  # Every worker of a run makes its own environment; the note comes once.
        env = CodeEnv(data=data, gold="drop")
    said = capsys.readouterr().err
    assert said.count("2 rows left out, whose own solutions fail: ") == 1
    assert "line 31" in said
    assert len(take(env, 99) + take(env, 99, "test")) == 30
    env = CodeEnv(data=data, gold="trust")
    assert len(take(env, 99) + take(env, 99, "test")) == 32


def test_a_machine_without_a_jail_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(place: str) -> Sandbox:
        raise UnavailableError("no jail")

    monkeypatch.setattr("k2rl_rewards.unit_tests.connect", nowhere)
    env = CodeEnv()
    assert take(env, 1)[0].prompt
    with pytest.raises(UnavailableError, match="no jail"):
        env.setup()
    with pytest.raises(UnavailableError, match="no jail"):
        CodeEnv(data=jsonl(tmp_path / "other.jsonl", many({**MBPP, "code": "def add_one(x): return 1 + x"}, "text")))


def test_real_contest_rows(shared_data: Path) -> None:
    env = CodeEnv(data=str(shared_data / "code_contests/sample.jsonl"), test_share=0.3)
    tasks = take(env, 99) + take(env, 99, "test")
    assert len(tasks) == 20
    assert all(env.gold(t) is None for t in tasks)
    assert all(pair.keys() == {"stdin", "stdout"} for t in tasks for pair in t.reference["io"])


@pytest.mark.slow
def test_mbpp(jail: Sandbox, shared_data: Path) -> None:
    """Its reference code passes, also the two rows that need the setup code; `return None` passes nowhere."""
    data = str(shared_data / "mbpp/mbpp.jsonl")
    rows = read_rows(data, (schema := schemas.detect("code", data)).fields, schema.optional)
    found = [code_rows.reference_and_solution(row) for row in rows]
    needing = [(solution, {"tests": r["tests"]}) for r, solution in found if "setup" in r]
    constant = ["\n".join(f"def {n}(*a, **k): return None" for n in program_tests(r).names) for r, _ in found]
    reward = UnitTests(limits={"cpu_s": 30, "wall_s": 120})  # One solution computes for seconds.

    def passing(programs: list[str | None], references: list[dict[str, Any]]) -> int:
        with ThreadPoolExecutor(2) as workers:
            verdicts = list(workers.map(lambda p, r: reward(p or "", r), programs, references))
        assert all(v.scored for v in verdicts)
        return sum(v.status is Status.CORRECT for v in verdicts)

    assert passing([solution for _, solution in found], [reference for reference, _ in found]) == 974
    assert len(needing) == 2
    assert passing([solution for solution, _ in needing], [reference for _, reference in needing]) == 0
    assert passing(list(constant), [reference for reference, _ in found]) == 0
