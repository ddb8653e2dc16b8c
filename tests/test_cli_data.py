"""`k2rl data`: what each command prints and writes, and one line for everything it can't use."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_cli import Cli

from k2rl import assets
from k2rl.difficulty import Measured
from k2rl.plugins import make_env

Rows = list[dict[str, Any]]
SUMS: Rows = [
    {"question": f"What is {n} plus {n}?", "answer": str(2 * n), "level": f"Level {n % 3}"} for n in range(12)
]


@pytest.fixture
def k2rl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, rows: Rows) -> str:
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)) + "\n", "utf-8")
        return name

    return write


def rows_of(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_inspect(k2rl: Cli, file: Callable[..., str]) -> None:
    name = file("a.jsonl", [*SUMS, {**SUMS[0], "extra": 2.5}, {**SUMS[1], "question": SUMS[1]["question"].upper()}])
    report = k2rl.json("data", "inspect", name, "--json", "--examples", "1")
    assert (report["rows"], report["examples"]) == (14, [SUMS[0]])
    assert report["columns"]["extra"] == {
        "filled": 1,
        "types": {"float": 1},
        "distinct": 1,
        "values": {"min": 2.5, "median": 2.5, "max": 2.5},
    }
    assert report["columns"]["question"]["distinct"] == 13
    assert report["schemas"]["math"]["fields"] == {"prompt": "question", "answer": "answer", "level": "level"}
    assert report["prompts"]["duplicates"] == {"exact": 1, "normalised": 1}
    code, out, _ = k2rl("data", "inspect", name)
    assert code == 0
    assert "fits math as question_answer: fields" in out
    assert "1 exact duplicates, 1 more but for case and spacing" in out
    strange = file("b.jsonl", [{"q": "x", "when": [1]}])
    assert "prompts" not in k2rl.json("data", "inspect", strange, "--json")
    assert k2rl.json("data", "inspect", strange, "--prompt", "q", "--json")["prompts"]["characters"]["max"] == 1


def test_inspect_counts_tokens(k2rl: Cli, file: Callable[..., str], tiny_folder: Path) -> None:
    found = k2rl.json("data", "inspect", file("a.jsonl", SUMS), "--model", str(tiny_folder), "--json")["prompts"]
    assert 0 < found["tokens"]["min"] <= found["tokens"]["max"] <= found["characters"]["max"]


def test_dedup_keeps_the_first_and_says_which_went(k2rl: Cli, file: Callable[..., str], tmp_path: Path) -> None:
    twice = [*SUMS, {**SUMS[3], "answer": "7", "note": "é\u2028"}, {**SUMS[4], "question": "what is 4 plus  4?"}]
    name = file("a.jsonl", twice)
    report = k2rl.json("data", "dedup", name, "--out", "b.jsonl", "--json")
    assert rows_of(tmp_path / "b.jsonl") == SUMS
    assert report["duplicates"] == {"exact": 1, "normalised": 1, "near": 0}
    assert report["answer_differs"] == 1
    assert report["pairs"][0] == {"row": "line 13", "of": "line 4", "how": "exact", "similarity": 1.0}
    assert rows_of(tmp_path / "a.jsonl") == twice
    assert "12 rows left, nothing written without --out" in k2rl("data", "dedup", name)[1]


def test_contamination(k2rl: Cli, file: Callable[..., str], tmp_path: Path) -> None:
    train, test = file("train.jsonl", [*SUMS, SUMS[11]]), file("test.jsonl", [SUMS[2], SUMS[5], SUMS[5]])
    report = k2rl.json("data", "dedup", train, "--against", test, "--near", "0.8", "--out", "clean.json", "--json")
    assert report["against"]["contaminated"] == {"exact": 2, "normalised": 0, "near": 0}
    assert report["duplicates"]["exact"] == 1
    assert report["against"]["pairs"][0]["row"] == "line 3"
    assert json.loads((tmp_path / "clean.json").read_text()) == [r for r in SUMS if r not in (SUMS[2], SUMS[5])]
    assert "every row of test.jsonl is in train.jsonl" in k2rl.mistake(
        "data", "dedup", test, "--against", train, "--out", "none.jsonl"
    )
    assert not (tmp_path / "none.jsonl").exists()


def test_programs_with_other_tests_are_no_duplicates(k2rl: Cli, file: Callable[..., str]) -> None:
    rows = [{"text": "Add.", "code": "c", "test_list": [f"assert f({n}) == {n}"]} for n in (1, 2, 1)]
    assert k2rl.json("data", "dedup", file("a.jsonl", rows), "--json")["kept"] == 2
    other = file("b.jsonl", SUMS)
    assert "can't be compared" in k2rl.mistake("data", "dedup", "a.jsonl", "--against", other)


def test_check_lists_what_the_verifier_refuses(k2rl: Cli, file: Callable[..., str]) -> None:
    bad = [
        *SUMS,
        {"question": "Q", "answer": "\\boxed{1"},
        {"question": "R", "answer": None},
        {"question": "S", "answer": ""},
    ]
    code, out, err = k2rl("data", "check", file("a.jsonl", bad), "--json")
    report = json.loads(out)
    assert code == 1
    assert (report["rows"], report["ok"], report["failed"], report["schema"]) == (15, 12, 3, "question_answer")
    assert [f["row"] for f in report["failures"]] == ["line 13", "line 14", "line 15"]
    assert {f["status"] for f in report["failures"]} == {"unreadable"}
    assert err == "run failed: math does not accept the gold answers of 3 rows of a.jsonl\n"
    code, out, _ = k2rl("data", "check", file("b.jsonl", SUMS))
    assert (code, "12 of 12 gold answers are accepted" in out) == (0, True)
    odd = file("c.jsonl", [{"task": "1+1", "result": "2"}])
    assert k2rl("data", "check", odd, "--field", "prompt=task", "--field", "answer=result")[0] == 0


LENIENT = """from k2rl import SingleTurnEnv, Task, Verdict

class Upper(SingleTurnEnv):
    row_kind = "math"
    def tasks(self, split, seed):
        yield Task("x")
    def row_task(self, row):
        return Task(row.prompt, answer=str(row.values["answer"]))
    def verify(self, task, response):
        return Verdict.of(response.isupper())
"""


def test_check_uses_the_envs_own_verifier(k2rl: Cli, file: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LENIENT)
    rows = file("a.jsonl", [{"question": "a", "answer": "YES"}, {"question": "b", "answer": "no"}])
    code, out, _ = k2rl("data", "check", rows, "--env", "mine.py:Upper", "--json")
    assert code == 1
    assert json.loads(out)["failures"] == [{"row": "line 2", "status": "wrong", "detail": ""}]


def test_check_of_programs(k2rl: Cli, file: Callable[..., str], jail: Any) -> None:
    good = {"text": "Add one.", "code": "def f(x): return x + 1", "test_list": ["assert f(1) == 2"]}
    bad = [{**good, "code": "def f(x): return x"}, {**good, "test_list": ["assert f("]}, {**good, "code": None}]
    code, out, _ = k2rl("data", "check", file("a.jsonl", [good, *bad]), "--env", "code", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["no_gold"]) == (1, 1, 1)
    assert [(f["row"], f["status"]) for f in report["failures"]] == [("line 2", "wrong"), ("line 3", "unreadable")]


def measured(path: Path, data: str, rates: dict[str, float], name: str = "m") -> str:
    """What `k2rl measure` would write about the tasks whose question has these rates."""
    args = {"data": data, "test_share": 0.2}
    env = make_env("math", args)
    from dataclasses import replace

    tasks = [replace(t, env=name) for split in ("train", "test") for t in env.tasks(split, 0)]
    found = {t.id: Measured(8, int(8 * rates[q])).to_json() for t in tasks if (q := t.reference["question"]) in rates}
    path.write_text(json.dumps({"schema_version": 1, "envs": {name: {"id": "math", "args": args, "tasks": found}}}))
    return path.name


def test_tag_then_filter(k2rl: Cli, file: Callable[..., str], tmp_path: Path) -> None:
    name = file("a.jsonl", SUMS)
    rates = {row["question"]: n / 8 for n, row in enumerate(SUMS[:9])}
    report = measured(tmp_path / "m.json", name, rates)
    assert k2rl.json("data", "tag", name, "--measured", report, "--out", "t.jsonl", "--json")["tagged"] == 9
    tagged = rows_of(tmp_path / "t.jsonl")
    assert tagged == [{**row, "pass_rate": rates.get(row["question"])} for row in SUMS]
    out = k2rl(
        "data", "filter", "t.jsonl", "--pass-rate", "0.25", "0.75", "--where", "level=Level 1", "--out", "f.jsonl"
    )[1]
    assert out == "kept 1 of 12 rows, written to f.jsonl\n  level=Level 1 left out 8\n  pass_rate left out 3\n"
    assert [r["pass_rate"] for r in rows_of(tmp_path / "f.jsonl")] == [0.5]
    assert k2rl.json("data", "filter", "t.jsonl", "--max-chars", "18", "--out", "g.jsonl", "--json") == {
        "file": "t.jsonl",
        "rows": 12,
        "kept": 10,
        "left_out": {"max_chars": 2},
    }


@pytest.mark.skipif(not assets.NANO.is_dir(), reason="nano is not in this checkout")
def test_filter_by_tokens(k2rl: Cli, file: Callable[..., str]) -> None:
    rows = [*SUMS, {"question": "word " * 90, "answer": "1"}]
    name = file("a.jsonl", rows)
    found = k2rl.json("data", "filter", name, "--max-tokens", "80", "--model", "nano", "--out", "b.jsonl", "--json")
    assert found["left_out"] == {"max_tokens": 1}


def test_formats_go_into_each_other(k2rl: Cli, file: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    rows = [{**r, "text": "😀 ünï"} for r in SUMS]
    name = file("a.jsonl", rows)
    for source, out in ((name, "b.parquet"), ("b.parquet", "c.json"), ("c.json", "d.jsonl")):
        assert k2rl("data", "filter", source, "--min-chars", "1", "--out", out)[0] == 0
    assert rows_of(tmp_path / "d.jsonl") == rows
    lone = file("lone.jsonl", [{"question": "a \ud800 b", "answer": "1"}])
    assert k2rl("data", "filter", lone, "--min-chars", "1", "--out", "e.jsonl")[0] == 0
    assert rows_of(tmp_path / "e.jsonl") == [{"question": "a \ud800 b", "answer": "1"}]
    assert not list(tmp_path.glob(".draft-*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("inspect none.jsonl", "no data file none.jsonl"),
        ("inspect empty.jsonl", "empty.jsonl holds no rows"),
        ("inspect broken.parquet", "not a readable parquet file"),
        ("inspect a.jsonl --model nowhere/at/all", "--model nowhere/at/all: no tokenizer there"),
        ("inspect list.jsonl", "line 1: a row must be an object"),
        ("dedup odd.jsonl", "which column is the prompt? Give --prompt COLUMN; it has q"),
        ("dedup a.jsonl --out a.jsonl --force", "--out a.jsonl is an input: inputs are never overwritten"),
        ("dedup a.jsonl --out ./sub/../a.jsonl --force", "is an input"),
        ("dedup a.jsonl --out odd.jsonl", "--out odd.jsonl exists: choose another, or add --force"),
        ("dedup a.jsonl --out x.csv", "can't write .csv: use .jsonl, .json, .parquet"),
        ("dedup a.jsonl --out no/x.jsonl", "give a file in a folder that exists"),
        ("dedup a.jsonl --near 0.2", "--near is 0.2: it lies in [0.5, 1]"),
        ("check odd.jsonl", "has the columns q, which is no known format"),
        ("check a.jsonl --env logic", "which is no known format (logic_rl: quiz, names, solution)"),
        ("check a.jsonl --env two_turn_env:Luck", "reads no rows: it needs row_kind and row_task(row)"),
        ("check a.jsonl --field prompt", "--field 'prompt': write name=COLUMN"),
        ("check a.jsonl --format gsm", "unknown format 'gsm'"),
        ("tag a.jsonl --measured none.json --out x.jsonl", "no file none.json"),
        ("tag a.jsonl --measured m.json --env n --out x.jsonl", "m.json measures no env n: it has m"),
        ("tag other.jsonl --measured m.json --out x.jsonl", "none of the 1 rows of other.jsonl is among the 1 tasks"),
        ("filter a.jsonl --out x.jsonl", "nothing to filter by"),
        ("filter a.jsonl --pass-rate 0.1 0.9 --out x.jsonl", "no column 'pass_rate'; `k2rl data tag` writes it"),
        ("filter a.jsonl --pass-rate 0.9 0.1 --out x.jsonl", "give LOW HIGH, each in [0, 1]"),
        ("filter a.jsonl --where levle=1 --out x.jsonl", "no column 'levle' (did you mean 'level'?)"),
        ("filter a.jsonl --where level --out x.jsonl", "write COLUMN=VALUE"),
        ("filter a.jsonl --where level=9 --out x.jsonl", "none of the 12 rows of a.jsonl is left"),
        ("filter a.jsonl --max-tokens 9 --out x.jsonl", "--max-tokens and --model belong together"),
        (
            "filter rates.jsonl --pass-rate 0 1 --out x.jsonl",
            "rates.jsonl, line 1, field 'pass_rate': a pass rate is a num",
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(
    arguments: str, says: str, k2rl: Cli, file: Callable[..., str], tmp_path: Path
) -> None:
    if "parquet" in arguments:
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    (tmp_path / "sub").mkdir()
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    file("a.jsonl", SUMS)
    file("odd.jsonl", [{"q": "x"}])
    file("other.jsonl", [{"question": "another", "answer": "1"}])
    file("rates.jsonl", [{"question": "another", "answer": "1", "pass_rate": "high"}])
    measured(tmp_path / "m.json", "a.jsonl", {SUMS[0]["question"]: 0.5})
    assert says in k2rl.mistake("data", *arguments.split())
    assert not (tmp_path / "x.jsonl").exists()
    assert rows_of(tmp_path / "a.jsonl") == SUMS


def test_help_needs_no_torch(k2rl: Cli) -> None:
    import subprocess

    code = "import sys; from k2rl import cli; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
