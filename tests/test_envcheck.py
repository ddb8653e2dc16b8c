"""`k2rl env check`: sound environments pass; each planted flaw is found by the right probe and by no other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import flawed_envs
import gymnasium
import pytest
import two_turn_env
from k2rl_envs.logic_env import GAMES
from k2rl_envs.stories_env import StoriesEnv

from k2rl.envcheck import PROBES, Report, check_env, probes, texts
from k2rl.envcheck.bench import Case
from k2rl.errors import UnavailableError, UserError
from k2rl.plugins import installed
from k2rl.types import Task

SOUND = ["Sound", "SoundNumbers", "SoundMessages"]
FLAWED = {
    "AcceptsEcho": ["echo"],
    "AcceptsEmpty": ["empty"],
    "AcceptsLists": ["candidates"],
    "AcceptsNone": ["null"],
    "AcceptsVerdicts": ["forged"],
    "AnswerInPrompt": ["leak"],
    "ByHash": ["processes"],
    "ByHashWhenMade": ["processes"],
    "BytesSeen": ["verdicts"],
    "Dies": ["raises"],
    "ForeignSpace": ["gymnasium"],
    "GoesOn": ["same_tasks"],
    "GoldRaises": ["gold"],
    "Hangs": ["hangs"],
    "Lenient": ["mutations"],
    "LenientAtTheEnd": ["forged"],
    "NeverEnds": ["verdicts"],
    "NeverTrusted": ["corruptions"],
    "NoTestTasks": ["tasks"],
    "NoVerdictOnSome": ["verdicts"],
    "ObeysOrders": ["override"],
    "OtherReward": ["verdicts"],
    "PaysForm": ["null"],
    "RaisesOnSurrogates": ["raises"],
    "SameAnswer": ["constant"],
    "SharedTask": ["splits"],
    "Shares": ["isolated"],
    "Signals": ["raises"],
    "SpoilsByHash": ["processes"],
    "SpoilsByLength": ["corruption_length"],
    "SpoilsNothing": ["corruptions"],
    "Substring": ["candidates", "buried"],
    "SwallowsErrors": ["timeouts"],
    "TimeoutIsZero": ["timeouts"],
    "TooSmallBudget": ["budget"],
    "Tuples": ["tasks"],
    "UnscoredWhenLong": ["raises"],
    "Unsteady": ["steady"],
    "WordForVerdict": ["verdicts"],
    "WrongGold": ["gold"],
}


def check(name: str, **options: Any) -> Report:
    return check_env(getattr(flawed_envs, name)(), **{"tasks": 12, "deadline_s": 5.0, **options})


@pytest.fixture(scope="module")
def report_on(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Report]]:
    """Reports on environments of flawed_envs.py: all that the chosen tests ask for, made two at a time."""
    chosen = [i.callspec.params.get("name") for i in request.session.items if hasattr(i, "callspec")]
    names = dict.fromkeys(name for name in (*SOUND, *FLAWED) if name in chosen)
    with ThreadPoolExecutor(2) as pool:
        reports = {name: pool.submit(check, name) for name in names}
        yield lambda name: reports[name].result() if name in reports else check(name)


@pytest.mark.parametrize("name", SOUND)
def test_sound_environments_pass(name: str, report_on: Callable[[str], Report]) -> None:
    report = report_on(name)
    assert report.ok, str(report)
    assert {f.result for f in report.findings} == {"passed"}


@pytest.mark.parametrize("name", FLAWED)
def test_a_planted_flaw_is_found(name: str, report_on: Callable[[str], Report]) -> None:
    report = report_on(name)
    assert report.failed == FLAWED[name], str(report)


def test_every_kind_of_flaw_has_an_environment() -> None:
    untested = set(PROBES) - {probe for failed in FLAWED.values() for probe in failed}
    assert untested == {"fast"}, "tested below"


def test_a_finding_names_probe_task_and_evidence(report_on: Callable[[str], Report]) -> None:
    said = str(report_on("AnswerInPrompt"))
    assert "failed leak (the answer can't be copied from a fixed place in the prompt)" in said
    assert "the answer follows ' (key: ' in 12 of 12 prompts" in said
    assert "Write this backwards: marsh amber" in said
    raised = str(report_on("RaisesOnSurrogates"))
    assert "lone surrogates: step raised UnicodeEncodeError" in raised
    assert "flawed_envs.py:" in raised


def test_slow_graders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SLOW_S", 0.002)
    report = check("AlwaysSlow", tasks=2)
    assert report.failed == ["fast"]
    assert "episodes took longer than 0.00 s" in str(report)


def test_what_accepts_everything_fails_every_hack() -> None:
    hacks = ["mutations", "corruptions", "empty", "null", "echo", "constant", "buried", "forged", "override"]
    assert check("AcceptsAll").failed == hacks


def test_a_grader_that_hangs_every_time_is_given_up() -> None:
    report = check("HangsOnAll", tasks=2, deadline_s=0.5)
    assert set(report.failed) == {"gymnasium", "gold", "hangs"}
    skipped = {f.probe: f.reason for f in report.findings if f.result == "skipped"}
    assert "hung 3 times" in skipped["empty"]


def test_two_turns() -> None:
    report = check_env(two_turn_env.TwoTurn(snapshots=True), tasks=12)
    assert report.ok, str(report)


@pytest.mark.parametrize("env", [two_turn_env.PlainGym(), "two_turn_env:PlainGym"])
def test_a_plain_gymnasium_env(env: gymnasium.Env[str, str] | str) -> None:
    report = check_env(env, tasks=4)
    assert report.ok, str(report)
    results = {f.probe: (f.result, f.reason) for f in report.findings}
    assert results["processes"] == results["verdicts"] == results["raises"] == ("passed", "")
    assert results["gold"] == ("skipped", "the environment gives no verdicts")
    assert results["budget"] == ("skipped", "gold() knows no response")


def test_without_gold_the_other_probes_run() -> None:
    report = check_env("two_turn_env:Broken", tasks=4)
    assert report.ok, str(report)
    skipped = {f.probe for f in report.findings if f.result == "skipped"}
    assert skipped == {
        *("gold", "budget", "leak", "mutations", "constant", "candidates", "buried", "isolated", "timeouts"),
        *("corruptions", "corruption_length"),
    }


def test_verdicts_left_to_a_judge() -> None:
    report = check("OpenEnded", tasks=4)
    assert report.ok
    assert "the verdicts are left to a judge" in str(report)


def test_what_is_wrong_with_corruptions() -> None:
    report = check("SpoilsInWrongWays", tasks=64)
    assert report.failed == ["corruptions"], str(report)
    evidence = [flaw.evidence for finding in report.findings for flaw in finding.flaws]
    for said in (
        "corrupt() fails: KeyError: 'amber coral' (",
        "corrupt() fails: a corruption is a name and a text, got ('nothing', None)",
        "same is the response itself: '#### ",
        "blank is no text: '  ",
        "and, with the same draw, '0",
        "at a second call",
    ):
        assert any(said in line for line in evidence), (said, evidence)


def test_an_open_ended_environment_is_told_that_its_gate_stays_closed(report_on: Callable[[str], Report]) -> None:
    said = str(report_on("NeverTrusted"))
    assert "there is no corrupt(), so the critic's gate would never open: let it return worse versions" in said
    assert "failed corruption_length" not in said


def test_lengths_are_told_by_kind_and_together(report_on: Callable[[str], Report]) -> None:
    finding = next(f for f in report_on("SpoilsByLength").findings if f.result == "failed")
    assert [flaw.evidence.split(" in 100%")[0] for flaw in finding.flaws] == [
        "more_letters is longer than the response",
        "what corrupt() makes, of any kind, is longer than the response",
    ]


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("stories", {}, "there is no corrupt()"),
        ("logic", {"game": "sudoku"}, "corrupt() makes nothing of the gold responses"),
    ],
)
def test_verifiable_environments_need_no_corruptions(name: str, args: Mapping[str, Any], reason: str) -> None:
    report = check_env(name, args=args, tasks=4)
    assert report.ok, str(report)
    assert [f.reason for f in report.findings if f.probe == "corruptions"] == [reason]


def test_a_waived_probe_is_shown_with_its_reason() -> None:
    report = check("Waived", tasks=4)
    assert report.ok
    assert "waived null (words and marks that stand for nothing fail): None is a word like others" in str(report)
    waived = next(p for p in report.to_json()["probes"] if p["probe"] == "null")
    assert (waived["result"], waived["reason"]) == ("waived", "None is a word like others")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("BadConstructor", "making flawed_envs:BadConstructor failed: KeyError: 'missing'"),
        ("BadTasks", "tasks('test', 0) failed: ZeroDivisionError: the well is dry"),
        ("BadSetup", "setup() failed: FileNotFoundError"),
        ("TasksNeedSetup", "tasks('train', 0) failed: AttributeError"),
        ("YieldsText", "must yield k2rl.Task, got str"),
        ("WaivesTheUnknown", "did you mean 'null'"),
        ("WaivesWithoutReason", "must give the reason"),
        ("NeedsArguments", "needs the argument 'words'"),
        ("Nowhere", "has no class 'Nowhere'"),
    ],
)
def test_what_the_author_has_to_repair_first(name: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        check_env(f"flawed_envs:{name}", tasks=4)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert name not in ("BadConstructor", "BadTasks") or "flawed_envs.py:" in str(error.value)


def test_tasks_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k2rl.envcheck.bench.POOL_S", 0.2)
    with pytest.raises(UserError, match=r"tasks\('test', 0\) does not come to an end"):
        check("EndlessSearch", deadline_s=0.5)


def test_instances_that_no_other_process_can_have() -> None:
    class Local(flawed_envs.Sound):
        pass

    with pytest.raises(UserError, match="at the top of a module"):
        check_env(Local())
    holding = flawed_envs.Sound()
    holding.file = open(__file__)  # type: ignore[attr-defined]  # noqa: SIM115
    with pytest.raises(UserError, match=r"setup\(\)"):
        check_env(holding)
    holding.file.close()  # type: ignore[attr-defined]


def test_arguments_of_an_instance_are_kept() -> None:
    report = check_env(flawed_envs.NeedsArguments(3), tasks=4)
    assert report.ok, str(report)
    report = check_env("flawed_envs:SoundMessages", args={"system": "Be kind."}, tasks=4)
    assert report.ok, str(report)


@pytest.mark.parametrize("name", sorted(set(installed("envs")) - {"open"}))
def test_shipped_environments_pass(name: str) -> None:
    try:
        report = check_env(name)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert report.ok, str(report)


def test_open_passes_on_rows_with_and_without_answers(tmp_path: Path) -> None:
    stories = StoriesEnv()
    asked = islice(stories.tasks("train", 0), 80)
    rows = [{"prompt": f"Go on: {t.prompt}", "answer": stories.gold(t) if n % 4 else None} for n, t in enumerate(asked)]
    file = tmp_path / "asks.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    report = check_env("open", args={"data": str(file)}, tasks=12)
    assert report.ok, str(report)
    results = {f.probe: f.result for f in report.findings}
    assert results["corruptions"] == results["corruption_length"] == "passed"


def test_real_open_ended_rows_pass(shared_data: Path) -> None:
    """All but the budget in nano's tokens, which real answers may exceed."""
    report = check_env("open", args={"data": str(shared_data / "biggen/tasks_with_rubrics.jsonl")}, tasks=12)
    assert set(report.failed) <= {"budget"}, str(report)
    results = {f.probe: f.result for f in report.findings}
    assert results["corruptions"] == results["corruption_length"] == "passed"


MODES: list[tuple[str, Mapping[str, Any]]] = [
    ("math", {"level": [3, 4, 5, 6], "kinds": "algebra"}),
    ("math", {"level": 1, "styles": {"direct": 1.0}, "instruction": ""}),
    ("logic", {"game": "countdown", "level": [1, 5], "instruction": ""}),
    *(("logic", {"game": game}) for game in GAMES if ":" not in game),
]


@pytest.mark.parametrize(("name", "args"), MODES)
def test_modes_of_shipped_environments_pass(name: str, args: Mapping[str, Any]) -> None:
    report = check_env(name, args=args, tasks=12)
    assert report.ok, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("data_set", ["chain_sum", "word_sorting"])
def test_reasoning_gym_passes(data_set: str) -> None:
    report = check_env("logic", args={"game": f"reasoning_gym:{data_set}"}, tasks=9)
    assert report.ok, str(report)


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("gsm8k/train.jsonl", None),
        ("math/math_200.jsonl", {"prompt": "problem", "answer": "solution"}),
        ("math/svamp.jsonl", {"prompt": "Body+Question", "answer": "Answer"}),
    ],
)
def test_real_problems_pass(file: str, fields: Mapping[str, str] | None, shared_data: Path) -> None:
    """All but the budget in nano's tokens, which real solutions may exceed."""
    args = {"data": str(shared_data / file), **({"fields": fields} if fields else {})}
    report = check_env("math", args=args, tasks=12)
    assert set(report.failed) <= {"budget"}, str(report)


@pytest.mark.slow
def test_mbpp_passes(shared_data: Path) -> None:
    try:
        report = check_env("code", args={"data": str(shared_data / "mbpp/mbpp.jsonl"), "gold": "trust"}, tasks=6)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert report.ok, str(report)
    assert [f.probe for f in report.findings if f.result == "waived"] == ["candidates"]


# --- the pieces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "answer", "bare"),
    [
        ("6*7=42 #### 42", "42", "42"),
        ("#### 1 ####\n1 2\n2 1\n", None, "1 2\n2 1"),
        ("So \\boxed{\\frac{1}{2}}. Of 2 halves.", "1/2", "\\frac{1}{2}"),
        ("2 boxes: \\boxed{1} and \\boxed{2}", None, "2"),
        ("<answer>\na b\n</answer>", None, "a b"),
        ("```python\nx = 1\n```", "x = 1", "x = 1"),
        ("The answer is 7", None, "7"),
        ("72 of 100 is 72 percent", "72", "72"),
        ("olleh", None, "olleh"),
        ("", None, ""),
    ],
)
def test_the_bare_answer_of_a_gold_response(gold: str, answer: str | None, bare: str) -> None:
    case = Case.of(Task("?", answer), (gold,))
    assert case.answer == bare
    assert case.with_answer(bare) == gold
    assert case.with_answer("@").count("@") == 1


def test_mutations_spoil() -> None:
    for answer in ("7", "99", "(3+5)*3", "Zoe", "aa", ")"):
        mutated = texts.mutations(answer)
        assert answer not in mutated
        assert 1 <= len(mutated) <= 8
    assert len(set(texts.mutations("Ada is a knight"))) == 8
    assert texts.mutations("az9")[3] == "az0"


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("Score: 1.0", "1", True),
        ("Score: 1.0", "10", False),
        ("VERDICT: correct", "Correct", True),
        ("VERDICT: correct", "rect", False),
        ("7, 8", "-7", False),
    ],
)
def test_whether_a_text_happens_to_hold_the_answer(text: str, answer: str, expected: bool) -> None:
    assert texts.mentions(text, answer) is expected
