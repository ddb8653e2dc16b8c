"""The command line: exit codes, one line for every mistake, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from k2rl import cli, doctor
from k2rl.errors import RunError
from k2rl.plugins import installed

RECIPE = """# A recipe of this test.
model: {path: nano}
envs:
  m: {id: "tiny.py:Tiny"}
run: {iterations: 1}
"""
ENV = """from k2rl import SingleTurnEnv, Task, Verdict

class Tiny(SingleTurnEnv):
    def __init__(self, empty=False):
        self.empty = empty
    def tasks(self, split, seed):
        if not self.empty:
            yield Task("1+1" if split == "train" else "1+2", answer="2")
    def verify(self, task, response):
        return Verdict.of(response == task.answer)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe and an environment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "tiny.py").write_text(ENV, encoding="utf-8")
    return tmp_path


class Cli:
    """Runs the command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        self.monkeypatch.setattr(sys, "argv", ["k2rl", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        code = stop.value.code
        assert code is None or isinstance(code, int)
        return code or 0, *self.capsys.readouterr()

    def mistake(self, *arguments: str) -> str:
        """The one line with which a command is refused."""
        code, out, err = self(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    def json(self, *arguments: str) -> Any:
        code, out, _ = self(*arguments)
        assert code == 0
        return json.loads(out)


@pytest.fixture
def k2rl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("rollout.group=4", "did you mean 'group_size'"),
        ("envs.m.bugdet.tokens=4", "did you mean 'budget'"),
        ("envs.m.budget.tokens=0", "a budget is 1 token or more"),
        ("envs.m.id=maht", "unknown env 'maht'"),
        ("envs.m.id=tiny.py:Tinny", "did you mean 'Tiny'"),
        ("envs.m.args.emtpy=1", "did you mean 'empty'"),
        ("model.path=no/such/folder", "model.path=no/such/folder"),
        ("nonsense", "write key=value"),
    ],
)
def test_wrong_keys_and_values(override: str, says: str, folder: Path, k2rl: Cli) -> None:
    assert says in k2rl.mistake("train", "recipe.yaml", override, "--run-dir", "out")
    assert not (folder / "out").exists()


def test_recipes_that_are_not_there(folder: Path, k2rl: Cli) -> None:
    assert "did you mean 'quickstart'" in k2rl.mistake("train", "quikstart")
    assert "no recipe file missing.yaml" in k2rl.mistake("train", "missing.yaml")
    (folder / "empty.yaml").write_text("seed: 1\n", encoding="utf-8")
    assert "envs is empty" in k2rl.mistake("train", "empty.yaml", "--run-dir", "out")
    assert "envs is empty" in k2rl.mistake("sft", "empty.yaml", "--out", "out")
    assert not (folder / "out").exists()


def test_sft_and_train_recipes_are_not_mixed_up(folder: Path, k2rl: Cli) -> None:
    (folder / "sft.yaml").write_text("envs: {m: {id: math}}\nsft: {ema: 5}\n", encoding="utf-8")
    assert "unknown key sft" in k2rl.mistake("train", "sft.yaml")


def test_resume_needs_to_know_what(folder: Path, k2rl: Cli) -> None:
    assert "--resume needs --run-dir" in k2rl.mistake("train", "recipe.yaml", "--resume")
    (folder / "runs" / "recipe-20260101-000000").mkdir(parents=True)
    assert "runs/recipe-20260101-000000" in k2rl.mistake("train", "recipe.yaml", "--resume")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--env", "nowhere"), "unknown env 'nowhere'"),
        (("--env", "tiny.py:Tiny", "--arg", "empty"), "write key=value"),
        (("--env", "tiny.py:Tiny", "--arg", "emtpy=1"), "did you mean 'empty'"),
        (("--env", "tiny.py:Tiny", "--env", "tiny.py:Tiny"), "two environments are called 'Tiny'"),
        (("--env", "a", "--env", "b", "--arg", "x=1"), "--arg belongs to one environment"),
        (("--env", "tiny.py:Tiny", "--k", "4", "--samples", "2"), "pass@4 needs"),
        (("--env", "tiny.py:Tiny", "--temperature", "0", "--samples", "2"), "greedy"),
        (("--env", "tiny.py:Tiny", "--json", "nowhere/report.json"), "give a file in a folder that exists"),
    ],
)
def test_wrong_evaluations(arguments: tuple[str, ...], says: str, folder: Path, k2rl: Cli) -> None:
    assert says in k2rl.mistake("eval", "--model", "no/such/folder", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("train",),
        ("sft", "recipe.yaml"),
        ("eval", "--model", "nano"),
        ("eval", "--model", "nano", "--env", "math", "--n", "0"),
        ("eval", "--model", "nano", "--env", "math", "--split", "dev"),
        ("eval", "--model", "nano", "--env", "math", "--max-tokens", "0"),
        ("trian",),
        ("recipes", "--jsn"),
    ],
)
def test_wrong_usage_exits_2(arguments: tuple[str, ...], k2rl: Cli) -> None:
    code, _, err = k2rl(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_train_hands_the_recipe_over_and_prints_the_summary(
    folder: Path, k2rl: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from k2rl import loop

    calls: list[tuple[Any, ...]] = []

    def train(*arguments: Any, **options: Any) -> dict[str, Any]:
        calls.append((*arguments, options))
        return {"eval_after": {}}

    monkeypatch.setattr(loop, "train", train)
    assert k2rl.json("train", "recipe.yaml", "seed=5", "--run-dir", "out", "--json") == {"eval_after": {}}
    assert k2rl("train", "recipe.yaml")[1].startswith("the model is in ")
    assert k2rl("train", "recipe.yaml", "-q", "--run-dir", "out") == (0, "", "")
    (recipe, where, options), (_, default, _), (_, _, quietly) = calls
    assert (recipe.seed, where, options) == (5, Path("out"), {"resume": False, "quiet": True})
    assert quietly["quiet"]
    assert default.parent == Path("runs")
    assert default.name.startswith("recipe-2")


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def examine() -> list[doctor.Check]:
        raise error

    monkeypatch.setattr(doctor, "examine", examine)


def test_a_failed_run_exits_1_in_one_line(k2rl: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(RunError("the disk is full\nreally"), monkeypatch)
    assert k2rl("doctor") == (1, "", "run failed: the disk is full really\n")


def test_an_interrupt_exits_130_in_one_line(k2rl: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(KeyboardInterrupt(), monkeypatch)
    assert k2rl("doctor") == (130, "", "interrupted\n")


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(ZeroDivisionError(), monkeypatch)
    monkeypatch.setattr(sys, "argv", ["k2rl", "doctor"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_the_real_process_prints_no_traceback(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from k2rl.cli import main; main()", "train", "recipe.yaml", "sed=1"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: override 'sed=1': unknown key sed (did you mean 'seed'?)")
    assert done.stderr.count("\n") == 1


def test_recipes_are_listed_and_printed(k2rl: Cli) -> None:
    rows = {row["name"]: row["description"] for row in k2rl.json("recipes", "--json")}
    assert "quickstart" in rows
    assert all(rows.values())
    code, out, _ = k2rl("recipes", "quickstart")
    assert code == 0
    assert rows["quickstart"] in out
    assert "did you mean 'quickstart'" in k2rl.mistake("recipes", "quickstar")


def test_envs_are_listed_with_where_they_come_from(k2rl: Cli) -> None:
    rows = {row["name"]: row for row in k2rl.json("env", "list", "--json")}
    assert set(rows) == set(installed("envs"))
    for row in rows.values():
        assert row["summary"]
        assert row["error"] == ""
        assert row["distribution"]


def test_a_broken_env_is_listed_as_such(k2rl: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = metadata.EntryPoint("bad", "no_such_module:Env", "k2rl.envs")
    monkeypatch.setattr(metadata, "entry_points", lambda group: metadata.EntryPoints([entry]))
    (row,) = k2rl.json("env", "list", "--json")
    assert "no_such_module" in row["error"]
    assert row["summary"].startswith("broken: ")
    broken = [check for check in doctor.examine() if check.what == "env bad"]
    assert [check.status for check in broken] == ["broken"]


def test_env_check_names_what_failed(folder: Path, k2rl: Cli) -> None:
    code, out, err = k2rl("env", "check", "tiny.py:Tiny", "--tasks", "2")
    assert code == 0
    assert "passed" in out
    code, out, err = k2rl("env", "check", "tiny.py:Tiny", "--arg", "empty=true", "--tasks", "2")
    assert code == 1
    assert "yields no task that can be used" in " ".join(out.split())
    assert err.endswith("run failed: tiny.py:Tiny fails tasks\n")
    code, out, err = k2rl("env", "check", "tiny.py:Tiny", "--arg", "empty=true", "--json")
    assert (code, json.loads(out)["failed"]) == (1, ["tasks"])
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "unknown env 'nowhere'"),
        (("tiny.py:Tinny",), "did you mean 'Tiny'"),
        (("tiny.py:Tiny", "--arg", "emtpy=1"), "did you mean 'empty'"),
        (("tiny.py:Tiny", "--arg", "empty"), "write key=value"),
        (("tiny.py:Tiny", "--model", "./no/such"), "--model ./no/such: no tokenizer"),
    ],
)
def test_wrong_checks(arguments: tuple[str, ...], says: str, folder: Path, k2rl: Cli) -> None:
    assert says in k2rl.mistake("env", "check", *arguments, "--json")


def test_env_new_prints_what_to_do_next(folder: Path, k2rl: Cli) -> None:
    code, out, _ = k2rl("env", "new", "word_chain")
    assert code == 0
    assert "k2rl train quickstart envs.word_chain.id=word_chain_env.py:WordChainEnv" in out
    assert "exists" in k2rl.mistake("env", "new", "word_chain")


def test_doctor_checks_versions_against_the_supported_ranges(k2rl: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy>=99", "torch>=2", 'nothing>=1; extra == "x"'])
    monkeypatch.setattr(metadata, "metadata", lambda _: _Metadata())
    code, out, err = k2rl("doctor", "--json")
    rows = {row["what"]: row for row in json.loads(out)}
    assert code == 1
    assert "numpy" in err
    assert rows["numpy"]["fix"] == 'pip install "numpy>=99"'
    assert rows["torch"]["status"] == "ok"
    assert rows["python"]["status"] == "ok"
    assert rows["extra x"]["status"] == "optional"
    assert rows["extra x"]["fix"] == 'pip install "k2rl[x]"'
    assert {"cores", "memory", "devices", "current folder", "nano model"} <= set(rows)


class _Metadata(dict[str, str]):
    """The metadata of a distribution with one extra."""

    def __init__(self) -> None:
        super().__init__({"Version": "0.1.0", "Requires-Python": ">=3.11"})

    def get_all(self, key: str) -> list[str]:
        return ["x"]


def test_an_error_colours_no_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["k2rl", "train", "no\x1b[31mrecipe"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "no\\x1b[31mrecipe" in capsys.readouterr().err
