"""`k2rl eval-rewards replay`: which past verdicts a changed verifier turns, and what is never taken for a verdict.

1. A changed reward turns the verdicts it should; errors, before and now, turn nothing.
2. What no verifier saw, or what is not for a verifier, is counted apart; so are envs that the reward is not for.
3. A run's own verifiers turn nothing in what they have verified.
4. A killed run's damaged file counts as far as it is whole.
5. On the screen texts are texts; what is written can be read; mistakes are one line.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from test_cli import Cli

from k2rl import Env, SingleTurnEnv
from k2rl.errors import UnavailableError, UserError
from k2rl.intervals import wilson, wilson_clustered
from k2rl.loop import train
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve, save
from k2rl.replay import examples, read, replay
from k2rl.terminal import shown
from k2rl.types import End, Rollout, Segment, Status, Task, Verdict

CORRECT, WRONG, MALFORMED = Verdict.of(True), Verdict.of(False, "is not 7"), Verdict.malformed("no answer")
PENDING, RANKED = Verdict.pending(), Verdict(Status.RANKED, 0.5)
FAILED = Verdict.failure(Status.TIMEOUT, "took too long")


class Strict:
    """Wants the answer and nothing else, once marked by `#`; fails on some."""

    def __init__(self, half: bool = False) -> None:
        self.half = half

    def __call__(self, response: str, reference: Mapping[str, Any]) -> Any:
        answer = reference["answer"]
        if response == "raise":
            raise RuntimeError("no \x1b[31mgrader")
        if response == "refuse":
            raise UserError("not my kind")
        if response == "late":
            return FAILED
        if not response.startswith("#"):
            return Verdict.malformed("\x1b[31mno # in it\u202e")
        return Verdict.of(response[1:] == answer or self.half * 0.5)


class Needs(SingleTurnEnv):
    """Can't be made here."""

    def __init__(self) -> None:
        raise UnavailableError("no jail")


class Several(Env):
    """May take several turns, though none of its rollouts did."""


def rollout(env: str, response: str | tuple[str, ...], *verdicts: Verdict, end: End = End.STOP, n: int = 0) -> Rollout:
    """A response to a task whose answer is 7."""
    text = (response,) if isinstance(response, str) else response
    task = Task(f"What is it ({n})?", answer="7", env=env)
    return Rollout(task, 0, (1, 2), (Segment("policy", (3,), (-0.5,)),), end, verdicts, text)


def write(run: Path, *iterations: list[Rollout]) -> Path:
    """A run's rollouts, as a run writes them."""
    (run / "rollouts").mkdir(parents=True)
    for number, rollouts in enumerate(iterations, 1):
        rows = "".join(json.dumps({"schema_version": 1, **r.to_json()}) + "\n" for r in rollouts)
        packed = gzip.compress(rows.encode("utf-8", "surrogatepass"))
        (run / "rollouts" / f"{number:06d}.jsonl.gz").write_bytes(packed)
    return run


def test_1_what_turns(tmp_path: Path) -> None:
    run = write(
        tmp_path / "run",
        [
            rollout("m", "#7", CORRECT),
            rollout("m", "#7", WRONG),
            rollout("m", "7", CORRECT, n=1),
            rollout("m", "7", WRONG, n=1),
            rollout("m", "#8", WRONG, n=2),
        ],
        [
            rollout("m", "#8", Verdict.of(0.25), n=2),
            rollout("m", "raise", CORRECT),
            rollout("m", "refuse", CORRECT),
            rollout("m", "late", WRONG),
            rollout("m", "#7", FAILED, end=End.ERROR),
            rollout("m", "late", FAILED, end=End.ERROR),
        ],
    )
    report, found = replay(run, "test_replay:Strict", quiet=True)
    own = report["envs"]["m"]
    assert (own["n"], own["turned"], own["now_correct"], own["no_longer_correct"]) == (6, 3, 1, 1)
    assert (own["errors"], own["errors_before"], own["scores_changed"]) == (4, 2, 1)
    assert own["share_turned"] == 0.5
    assert own["ci95"]["share_turned"] == wilson_clustered([(1, 2), (2, 2), (0, 2)])
    assert own["table"] == {
        "correct": {"correct": 1, "malformed": 1, "verifier_error": 2},
        "wrong": {"correct": 1, "malformed": 1, "wrong": 2, "timeout": 1},
        "timeout": {"correct": 1, "timeout": 1},
    }
    assert report["all"] == {key: own[key] for key in report["all"]}
    assert [(one.past.iteration, one.past.line) for one in found if one.turned] == [(1, 2), (1, 3), (1, 4)]
    turned = [(one.past.verdict.status, one.verdict.status) for one in examples(found, 2)]
    assert turned == [("wrong", "correct"), ("correct", "malformed")], "the verdicts on correctness first"
    half, _ = replay(run, "test_replay:Strict", {"half": True}, quiet=True)
    assert half["all"]["scores_changed"] == 2


def test_2_what_is_not_scored_again(tmp_path: Path) -> None:
    run = write(
        tmp_path / "run",
        [
            rollout("m", "#7", CORRECT),
            rollout("m", "#7", CORRECT, end=End.BUDGET),
            rollout("m", "#7", CORRECT, end=End.REPEAT),
            rollout("m", (), FAILED, end=End.ERROR),
            rollout("turns", ("a", "b"), CORRECT),
            rollout("turns", "a", WRONG),
            rollout("open", "#7", PENDING, RANKED),
            rollout("open", "", MALFORMED),
            rollout("gym", "#7"),
            rollout("long", "#7", end=End.BUDGET),
            *[rollout("other", "seven", CORRECT) for _ in range(5)],
            *[rollout("broken", "raise", WRONG) for _ in range(5)],
        ],
    )
    report, found = replay(run, "test_replay:Strict", quiet=True)
    assert [one.past.task.env for one in found] == ["m"]
    assert {key: report["envs"]["m"][key] for key in ("cut", "no_response", "n")} == {
        "cut": 2,
        "no_response": 1,
        "n": 1,
    }
    left = report["left_out"]
    assert {env: why["rollouts"] for env, why in left.items()} == {
        "turns": 2,
        "open": 2,
        "gym": 1,
        "long": 1,
        "other": 5,
        "broken": 5,
    }
    assert "several turns" in left["turns"]["reason"]
    assert "compared" in left["open"]["reason"]
    assert "no verdicts" in left["gym"]["reason"]
    assert "cut" in left["long"]["reason"]
    assert "accepts none of 5 responses that were correct" in left["other"]["reason"]
    assert "RuntimeError" in left["broken"]["reason"]
    named, _ = replay(run, "test_replay:Strict", envs=["other", "turns"], quiet=True)
    assert named["envs"]["other"]["no_longer_correct"] == 5, "what is asked for by name is scored"
    assert list(named["left_out"]) == ["turns"]


def test_2_a_part_of_a_run(tmp_path: Path) -> None:
    run = write(tmp_path / "run", *([rollout("m", "#7", CORRECT, n=i * 10 + n) for n in range(10)] for i in range(5)))
    _, found = replay(run, "test_replay:Strict", limit=5, workers=2, quiet=True)
    assert [(one.past.iteration, one.past.line) for one in found] == [(n, 1) for n in range(1, 6)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of nano, on an env with a verifier and one of two turns."""
    run = tmp_path_factory.mktemp("trained") / "run"
    data = {
        "model": {"path": "nano"},
        "envs": {
            "math": {"id": "math", "args": {"level": 2, "instruction": ""}, "pool": 50, "budget": {"tokens": 24}},
            "two": {"id": "two_turn_env:TwoTurn", "pool": 20},
        },
        "run": {"iterations": 2, "eval_tasks": 0, "threads": 1},
        "rollout": {"tasks": 6, "group_size": 4, "slots": 16},
    }
    train(resolve(Recipe, data), run, quiet=True)
    return run


@pytest.mark.parametrize("reward", [None, "math_answer"])
def test_3_an_unchanged_verifier_turns_nothing(trained: Path, reward: str | None) -> None:
    report, found = replay(trained, reward, quiet=True)
    own = report["envs"]["math"]
    assert own["n"] == len(found) > 10
    assert (own["turned"], own["scores_changed"], own["errors"]) == (0, 0, 0)
    assert own["table"]["correct"]["correct"] > 0
    assert own["table"].keys() > {"correct"}
    assert all(one.verdict == one.past.verdict for one in found), "to the letter"
    assert report["left_out"]["two"]["rollouts"] + own["n"] + own["cut"] == 48


def test_3_what_a_recipe_says_of_envs(tmp_path: Path) -> None:
    run = write(
        tmp_path / "run",
        [rollout(env, "#7", CORRECT) for env in ("math", "needs", "several", "gone")],
    )
    ids = {"math": "math", "needs": "test_replay:Needs", "several": "test_replay:Several"}
    save(resolve(Recipe, {"envs": {name: {"id": env} for name, env in ids.items()}}), run / "recipe.yaml")
    report, found = replay(run, quiet=True)
    assert [one.past.task.env for one in found] == ["math"]
    reasons = {env: left["reason"] for env, left in report["left_out"].items()}
    assert reasons["needs"] == "no jail"
    assert "no SingleTurnEnv" in reasons["several"]
    assert "no such environment" in reasons["gone"]


def test_4_a_half_written_file(tmp_path: Path) -> None:
    rows = [rollout("m", "#7" if n % 2 else f"#{n}", Verdict.of(bool(n % 2)), n=n) for n in range(400)]
    run = write(tmp_path / "run", rows, rows, rows[:3])
    cut = run / "rollouts" / "000002.jsonl.gz"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (run / "rollouts" / "000003.jsonl.gz").write_bytes(gzip.compress(b'{"task": {"env": "m"}}\n{"ta'))
    (run / "rollouts" / ".draft-000004.jsonl.gz").write_bytes(b"half")
    recorded = read(run, quiet=True)
    assert recorded.damaged == ["000002.jsonl.gz", "000003.jsonl.gz"]
    assert 400 < len(recorded.rollouts["m"]) < 800
    report, _ = replay(run, "test_replay:Strict", quiet=True)
    assert report["all"]["turned"] == 0
    assert report["damaged"] == recorded.damaged


def test_a_share_of_clusters() -> None:
    apart, together = [(1, 1)] * 5 + [(0, 1)] * 15, [(10, 10)] * 5 + [(0, 10)] * 15
    assert wilson_clustered(apart) == pytest.approx(wilson(0.25, 19))
    assert wilson_clustered(together) == pytest.approx(wilson_clustered(apart)), "copies tell nothing new"
    assert wilson_clustered([(0, 10)] * 20) == wilson(0.0, 20)
    mixed = wilson_clustered([(5, 20)] * 9 + [(6, 20)])
    assert mixed == pytest.approx(wilson(0.255, 200)), "tasks that are all alike tell no more than as many cases"


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def k2rl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def test_5_texts_are_texts(in_folder: Callable[[str, str], Path], tmp_path: Path, k2rl: Cli) -> None:
    hostile = "[red]\x1b[2J\r\n\ud800</script>" + "x" * 1_000_000
    run = write(tmp_path / "run", [rollout("[m]\x1b[1m", text, CORRECT) for text in ("#7", hostile)])
    code, out, err = k2rl(
        "eval-rewards", "replay", str(run), "--reward", "test_replay:Strict", "--rows-out", "rows.jsonl"
    )
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert r"[red]\x1b[2J\r\n\ud800</script>xxx" in out
    assert "more) … xxx" in out
    assert len(out) < 3000
    assert r"[m]\x1b[1m, iteration 1, line 2: correct -> malformed" in out
    assert r"now      \x1b[31mno # in it\u202e" in out
    assert "1 of 2 verdicts turned, 50.00 %" in out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["turned"] for row in rows] == [False, True]
    assert rows[1]["response"] == hostile
    assert "response" not in rows[0]
    assert rows[1]["before"]["status"] == "correct"


def test_5_the_report(in_folder: Callable[[str, str], Path], tmp_path: Path, k2rl: Cli) -> None:
    run = write(tmp_path / "run", [rollout("m", "#7", CORRECT), rollout("two", ("a", "b"), CORRECT)])
    code, out, _ = k2rl("eval-rewards", "replay", str(run), "--reward", "test_replay:Strict", "--json", "report.json")
    assert code == 0
    assert "m: 0 of 1 verdicts turned" in out
    assert "two: left out, 1 rollouts: its episodes have several turns" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema_version"] == 1
    assert report["envs"]["m"]["turned"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere",), "no run directory nowhere"),
        (("empty",), "empty has no rollouts"),
        (("run", "--env", "nn"), "the run has m"),
        (("run",), "run has no recipe.yaml"),
        (("run", "--reward", "math_anser"), "did you mean 'math_answer'"),
        (("run", "--reward", "test_replay:Strict", "--arg", "hlf=1"), "takes no argument 'hlf'"),
        (("run", "--arg", "half=1"), "give --reward"),
        (("run", "--reward", "countdown"), r"not of the reward's kind: "),
        (("run", "--reward", "math_answer", "--json", "no/report.json"), "give a file in a folder that exists"),
        (("run", "--reward", "math_answer", "--json", "a.json", "--rows-out", "a.json"), "the file of --json"),
    ],
)
def test_5_mistakes(
    arguments: tuple[str, ...], says: str, in_folder: Callable[[str, str], Path], tmp_path: Path, k2rl: Cli
) -> None:
    write(tmp_path / "run", [rollout("m", "#7", CORRECT)])
    (tmp_path / "empty").mkdir()
    assert says in k2rl.mistake("eval-rewards", "replay", *arguments)


def test_shown() -> None:
    assert shown("plain é 日本\\n") == "plain é 日本\\n"
    assert shown("a\tb\x00\x7f\x85\u2028\ufeff") == r"a\tb\x00\x7f\x85\u2028\ufeff"
    assert shown("0123456789", 4) == "01 … (6 more) … 89"
    assert shown("0123456789", 10) == "0123456789"
