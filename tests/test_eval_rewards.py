"""`k2rl eval-rewards verifier`: what is counted, what is written, and every way in which the input can be wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from test_cli import Cli

from k2rl import eval_rewards, progress
from k2rl.errors import UserError
from k2rl.eval_rewards import evaluate, read_rows
from k2rl.intervals import wilson, wilson_count
from k2rl.types import Status, Verdict

Write = Callable[[str, str], Path]


class Equal:
    """Equal or not; some predictions make it fail, in one way or another."""

    threads: ClassVar[set[int]] = set()

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay

    def __call__(self, response: str, reference: Mapping[str, object]) -> Any:
        self.threads.add(threading.get_ident())
        time.sleep(self.delay)
        if response == "raise":
            raise KeyError("a key")
        if response == "late":
            return Verdict.failure(Status.TIMEOUT, "took too long")
        if response == "half":
            return Verdict.of(0.5)
        return True if response == "bool" else Verdict.of(response == reference["answer"])


class Runs:
    """Takes a program for right if its text is the reference's first test; refuses a test `assert impossible`."""

    def __call__(self, response: str, reference: Mapping[str, Any]) -> Verdict:
        test = next(iter(reference.get("tests") or reference.get("cases") or reference.get("io") or [reference]))
        if test == "assert impossible":
            raise UserError("tests[0] names no function")
        return Verdict.of(response == json.dumps(test))


@pytest.fixture
def k2rl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def answer(prediction: object, expected: bool, **more: object) -> dict[str, Any]:
    return {"gold": "7", "prediction": prediction, "expected": expected, **more}


ROWS = (
    answer("7", True),
    answer("7", False),
    answer("8", True),
    answer("8", False, id="odd"),
    answer("half", True),
    answer("raise", False),
    answer("late", True),
    answer("bool", True),
)


def test_what_is_counted(in_folder: Write) -> None:
    path = in_folder("rows.jsonl", "\ufeff" + lines(*ROWS[:4]) + "\n  \n" + lines(*ROWS[4:]))
    report, judged = evaluate("test_eval_rewards:Equal", path, quiet=True)
    assert {k: report[k] for k in ("n", "agreement", "false_positive", "false_negative", "errors")} == {
        "n": 8,
        "agreement": 2 / 8,
        "false_positive": 1,
        "false_negative": 2,
        "errors": 3,
    }
    assert report["schema_version"] == 1
    assert report["per_second"] > 0
    assert report["ci95"] == {
        "agreement": wilson(0.25, 8),
        "false_positive": wilson_count(1, 3),
        "false_negative": wilson_count(2, 5),
        "errors": wilson_count(3, 8),
    }
    assert [j.row.line for j in judged] == [1, 2, 3, 4, 7, 8, 9, 10]
    assert [j.row.id for j in judged[2:5]] == ["3", "odd", "7"]
    assert [j.verdict.status for j in judged[5:]] == ["verifier_error", "timeout", "verifier_error"]
    assert "KeyError" in judged[5].verdict.detail
    assert "test_eval_rewards.py:" in judged[5].verdict.detail
    assert "returned a bool" in judged[7].verdict.detail


def test_intervals() -> None:
    assert wilson(0.5, 100) == pytest.approx([0.4038, 0.5962], abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx([0.0, 0.2775], abs=1e-4)
    assert wilson_count(50, 100) == pytest.approx([40.38, 59.62], abs=1e-2)
    assert wilson_count(0, 0) == [0.0, 0.0]


def test_several_threads_keep_the_order(in_folder: Write) -> None:
    path = in_folder("rows.jsonl", lines(*(answer(str(n), n == 7) for n in range(60))))
    Equal.threads.clear()
    _, judged = evaluate("test_eval_rewards:Equal", path, {"delay": 0.005}, workers=4, quiet=True)
    assert len(Equal.threads) == 4
    assert [j.row.response for j in judged] == [str(n) for n in range(60)]
    assert all(j.agrees for j in judged)


def test_a_silence_is_explained(in_folder: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(eval_rewards, "_SILENT_S", 0.05)
    monkeypatch.setattr(progress.console, "print", lambda text, **_: said.append(text))
    path = in_folder("rows.jsonl", "\n" + lines(answer("7", True)))
    evaluate("test_eval_rewards:Equal", path, {"delay": 0.5}, workers=1, quiet=True)
    assert said
    assert "waiting for line 2" in said[0]


def test_program_rows(in_folder: Write) -> None:
    tests, io = ["assert f(1) == 2"], [{"stdin": "1", "stdout": "2"}]
    path = in_folder(
        "rows.jsonl",
        lines(
            {"program": json.dumps(tests[0]), "tests": tests, "expected": "accept"},
            {"program": "no", "fn": "f", "cases": [[[1], 2]], "expected": "reject"},
            {"program": json.dumps([[1], 2]), "fn": "f", "cases": [[[1], 2]], "expected": "reject"},
            {"program": "no", "io": io, "expected": "accept"},
            {"program": "no", "test": "def check(candidate): pass", "entry_point": "f", "expected": "reject"},
        ),
    )
    report, judged = evaluate("test_eval_rewards:Runs", path, quiet=True)
    assert (report["agreement"], report["false_positive"], report["false_negative"]) == (0.6, 1, 1)
    assert judged[1].row.reference == {"fn": "f", "cases": [[[1], 2]]}
    assert [(j.to_json()["expected"], j.to_json()["got"]) for j in judged[:3]] == [
        ("accept", "accept"),
        ("reject", "reject"),
        ("reject", "accept"),
    ]


@pytest.mark.parametrize(
    ("gold", "prediction", "expected"),
    [
        ("72", "72", True),
        (72, 72.0, True),
        ("1/2", "0.5", True),
        ("... so 70+2 = 72\n#### 72", "72", True),
        ("72", "Seventy-two. \\boxed{72}", True),
        ("72", "The answer is 72.", True),
        ("72", "73", False),
        ("72", "72 or 73", False),
        ("72", "It may be 72, it may be 5.", False),
        ("72", "", False),
        ("72", "\\boxed{72", False),
    ],
)
def test_bare_and_marked_answers(gold: object, prediction: object, expected: bool, in_folder: Write) -> None:
    path = in_folder("rows.jsonl", lines({"gold": gold, "prediction": prediction, "expected": expected}))
    report, judged = evaluate("math_answer", path, quiet=True)
    assert report["agreement"] == 1.0, judged[0]


def test_gold_may_be_the_whole_reference(in_folder: Write) -> None:
    gold = {"numbers": [3, 5], "target": 8}
    path = in_folder("rows.jsonl", lines({"gold": gold, "prediction": "#### 3+5", "expected": True}))
    assert evaluate("countdown", path, quiet=True)[0]["agreement"] == 1.0


TESTS = {"tests": ["assert f(1)"]}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"gold": "1", "prediction": "1"}, "no field 'expected'"),
        ({"gold": "1", "expected": True}, "no field 'prediction'"),
        ({"prediction": "1", "expected": True}, "no field 'gold'"),
        (answer("7", True) | {"expected": "accept"}, "expected must be true or false, got 'accept'"),
        (answer("7", True) | {"expected": 1}, "expected must be true or false, got 1"),
        (answer(["7"], True), "prediction must be text, got list"),
        (answer("7", True) | {"gold": None}, "gold must be text, got NoneType"),
        (answer("7", True) | {"gold": True}, "gold must be text, got bool"),
        (answer("7", True) | {"gold": " "}, "gold is empty"),
        ({"program": "x", **TESTS, "expected": True}, "expected must be 'accept' or 'reject', got True"),
        ({"program": 5, **TESTS, "expected": "accept"}, "program must be text, got int"),
        ({"program": "x", "expected": "accept"}, "a program has one of tests, test, fn, io"),
        ({"program": "x", **TESTS, "io": [], "expected": "accept"}, "a program has one of tests, test, fn, io"),
        ({"program": "x", "tests": [], "expected": "accept"}, "tests must be a list that is not empty"),
        ({"program": "x", "tests": "assert f(1)", "expected": "accept"}, "tests must be a list"),
        ({"program": "x", "tests": [5], "expected": "accept"}, "tests[0] must be Python source"),
        ({"program": "x", "tests": ["assert f(1)", "assert f(1"], "expected": "accept"}, "tests[1] does not parse"),
        ({"program": "x", "tests": ["a\0b"], "expected": "accept"}, "tests[0] does not parse"),
        ({"program": "x", "fn": "f", "expected": "accept"}, "cases must be a list"),
        ({"program": "x", "fn": "f(", "cases": [[[1], 2]], "expected": "accept"}, "fn must be the name"),
        ({"program": "x", "fn": "f", "cases": [[1, 2]], "expected": "accept"}, "cases[0] must be [[argument"),
        ({"program": "x", "io": [{"stdin": "1"}], "expected": "accept"}, "io[0] must have the texts"),
        (["gold"], "a row is an object of fields, got list"),
    ],
)
def test_rows_that_are_none(row: Any, says: str, in_folder: Write) -> None:
    path = in_folder("rows.jsonl", lines(answer("7", True)) + "\n" + lines(row))
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}, line 3: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none(in_folder: Write, k2rl: Cli) -> None:
    in_folder("empty.jsonl", "\n \n")
    in_folder("broken.jsonl", lines(answer("7", True)) + '{"gold": "1", "pred\n')
    in_folder("rows.jsonl", lines(answer("7", True)))
    Path("latin.jsonl").write_bytes(b'{"gold": "1"}\n{"gold": "\xe9"}\n')

    def mistake(data: str, reward: str = "math_answer", out: str = "out.json", *more: str) -> str:
        return k2rl.mistake("eval-rewards", "verifier", "--reward", reward, "--data", data, "--json", out, *more)

    assert "no such file" in mistake("missing.jsonl")
    assert "holds no rows" in mistake("empty.jsonl")
    assert "broken.jsonl, line 2: not JSON" in mistake("broken.jsonl")
    assert "latin.jsonl, line 2: not UTF-8" in mistake("latin.jsonl")
    assert "did you mean 'math_answer'" in mistake("rows.jsonl", "math_anser")
    assert "did you mean 'deadline_s'" in mistake("rows.jsonl", "math_answer", "out.json", "--arg", "deadline=3")
    assert "write key=value" in mistake("rows.jsonl", "math_answer", "out.json", "--arg", "deadline")
    assert "--json nowhere/out.json" in mistake("rows.jsonl", "math_answer", "nowhere/out.json")
    assert "--rows-out nowhere/r" in mistake("rows.jsonl", "math_answer", "out.json", "--rows-out", "nowhere/r")
    assert "--json rows.jsonl is the file of --data" in mistake("rows.jsonl", "math_answer", "rows.jsonl")
    assert "--rows-out o.json is the file of --json" in mistake(
        "rows.jsonl", "math_answer", "o.json", "--rows-out", "./o.json"
    )
    assert Path("rows.jsonl").read_text() == lines(answer("7", True))
    assert {p.name for p in Path().iterdir()} == {"empty.jsonl", "broken.jsonl", "latin.jsonl", "rows.jsonl"}


def test_a_reference_that_the_reward_refuses_is_named_by_its_line(in_folder: Write, k2rl: Cli) -> None:
    row = {"program": "x", "tests": ["assert impossible"], "expected": "accept"}
    in_folder("rows.jsonl", lines({**row, "tests": ["assert f(1)"]}, row))
    command = ("--reward", "test_eval_rewards:Runs", "--data", "rows.jsonl", "--json", "out.json")
    assert "rows.jsonl, line 2: tests[0] names no function" in k2rl.mistake("eval-rewards", "verifier", *command)
    assert not Path("out.json").exists()
    in_folder("rows.jsonl", lines({**row, "program": "no answer at all"}))
    command = ("--reward", "math_answer", *command[2:])
    assert "rows.jsonl, line 1: the reference has no answer" in k2rl.mistake("eval-rewards", "verifier", *command)


def test_the_command_writes_and_lists_disagreements(in_folder: Write, k2rl: Cli) -> None:
    in_folder("rows.jsonl", lines(*ROWS, *(answer("[8]", True) for _ in range(20))))
    files = ("--json", "out.json", "--rows-out", "judged.jsonl")
    command = ("eval-rewards", "verifier", "--reward", "test_eval_rewards:Equal", "--data", "rows.jsonl", *files)
    code, out, _ = k2rl(*command)
    assert code == 0
    assert "agrees on 7.14 % of 28 rows" in out
    assert "1 false positives, 22 false negatives, 3 errors" in out
    assert out.count("wrong") == 16, "20 rows are listed: three errors and a false positive as well"
    assert "6 more disagreements" in out
    report = json.loads(Path("out.json").read_text())
    assert report["n"] == 28
    judged = [json.loads(line) for line in Path("judged.jsonl").read_text().splitlines()]
    assert [j["line"] for j in judged] == list(range(1, 29))
    assert judged[3] == {
        "id": "odd",
        "line": 4,
        "expected": False,
        "got": False,
        "agrees": True,
        "status": "wrong",
        "score": 0.0,
        "detail": "",
    }
    assert judged[6]["got"] is None
    assert {p.name for p in Path().iterdir()} == {"rows.jsonl", "out.json", "judged.jsonl"}
