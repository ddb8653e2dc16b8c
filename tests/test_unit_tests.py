"""The reward of programs: forms of tests, completions, shares, limits; the jail itself is tested elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from k2rl_rewards.unit_tests import UnitTests

from k2rl.errors import UserError
from k2rl.protocols import DEFAULT_LIMITS, Limits, Outcome, ProgramTest, Sandbox
from k2rl.types import Status, Verdict

DOUBLE = {"fn": "f", "cases": [[[1], 2], [[3], 6], [["a"], "aa"], [[[1]], [1, 1]]]}


class Recorder:
    """A sandbox that notes what it is asked and answers what it is told to."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome, self.asked = outcome, [("", (), DEFAULT_LIMITS)]

    def run(self, program: str, tests: Sequence[ProgramTest], limits: Limits = DEFAULT_LIMITS) -> Outcome:
        self.asked.append((program, tuple(tests), limits))  # type: ignore[arg-type]
        return self.outcome

    def close(self) -> None:
        pass


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    sandbox = Recorder(Outcome(Verdict.of(False, "2 of 4 tests failed"), (True, False, True, False), 0.0, 0.0))
    monkeypatch.setattr("k2rl_rewards.unit_tests.connect", lambda place: sandbox)
    return sandbox


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("def f(x): return x*2", Status.CORRECT),
        ("Doubling it:\n```python\ndef f(x):\n    return x + x\n```\nDone.", Status.CORRECT),
        ("f = lambda x: 2 * x", Status.CORRECT),
        ("def f(x): return x", Status.WRONG),
        ("def g(x): return x*2", Status.WRONG),
        ("def f(x): return None", Status.WRONG),
        ("def f(x): raise SystemExit(0)", Status.WRONG),
        ("def f(x): return x*2\nimport sys; sys.exit(0)", Status.WRONG),
        ("def f(x) return x*2", Status.MALFORMED),
        ("All tests passed.", Status.MALFORMED),
        ("```\n```", Status.MALFORMED),
        ("", Status.MALFORMED),
    ],
)
def test_verdicts_on_programs(jail: Sandbox, program: str, status: Status) -> None:
    assert UnitTests()(program, DOUBLE).status is status


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ({"tests": ["assert f(2) == 4", "assert not f(0)"]}, "def f(x): return x*2", "def f(x): return x+2"),
        ({"tests": ["assert f(1)"]}, "def f(x): return [0]", "def f(x): return []"),
        ({"tests": ["assert f(1) is True"]}, "def f(x): return x == 1", "def f(x): return 1"),
        ({"tests": ["assert near(f(3), 1)"], "setup": "def near(a, b): return abs(a - b) < 0.1"},
         "def f(x): return x / 3.0", "def f(x): return x"),
        ({"tests": ["assert math.isclose(f(2), 2 ** 0.5)"]}, "def f(x): return x ** 0.5", "def f(x): return x"),
        ({"tests": ["assert f(Node(3)) == 3"]},
         "class Node:\n    def __init__(self, n): self.n = n\ndef f(node): return node.n", "def f(node): return 3"),
        ({"tests": ["assert f('12') == 12"], "setup": "import re"},
         "def f(x): return int(re.sub('a', '', x))", "def f(x): return x"),
        ({"test": "def check(c):\n    for n in range(5):\n        assert c(n) == n + 1\n", "entry_point": "f"},
         "def f(x): return x + 1", "def f(x): return 1"),
        ({"io": [{"stdin": "1 2\n", "stdout": "3"}, {"stdin": "5 5", "stdout": "10\n"}]},
         "print(sum(map(int, input().split())))", "print(3)"),
    ],
)  # fmt: skip
def test_forms(jail: Sandbox, reference: dict[str, Any], right: str, wrong: str) -> None:
    verdict = UnitTests()(right, reference)
    assert verdict == Verdict.of(True), verdict
    assert UnitTests()(wrong, reference).status is Status.WRONG


PROMPT = """from typing import List
def g(x: int) -> int:
    return x + 1

def f(x: int) -> List[int]:
    '''A list of g(x).'''
"""


@pytest.mark.parametrize(
    "response",
    [
        "    return [g(x)]\n",
        "```python\n    return [g(x)]\n```",
        "def f(x: int) -> List[int]:\n    return [g(x)]",
        PROMPT + "    return [g(x)]",
        "from __future__ import annotations\ndef f(x: Unknown) -> List[int]:\n    return [g(x)]",
    ],
)
def test_a_response_goes_on_from_the_prompt_or_repeats_it(jail: Sandbox, response: str) -> None:
    reference = {"test": "def check(c):\n    assert c(1) == [2]", "entry_point": "f", "prompt": PROMPT}
    verdict = UnitTests()(response, reference)
    assert verdict == Verdict.of(True), verdict


def test_a_program_does_not_see_what_the_tests_expect(jail: Sandbox) -> None:
    setup = "def solution(x):\n    return x + 1\nANSWERS = {1: 2}"
    reference = {
        "tests": ["assert f(1) == ANSWERS[1]", "assert f(5) == solution(5)", "assert f(7) == 8"],
        "setup": setup,
    }
    assert UnitTests()("def f(x): return x + 1", reference) == Verdict.of(True)
    for thief in (
        "def f(x): return solution(x)",
        "def f(x): return ANSWERS.get(x, x + 1)",
        "from __main__ import solution as f",
    ):
        assert UnitTests()(thief, reference).status is Status.WRONG


def test_all_or_nothing_and_shares(recorder: Recorder) -> None:
    assert UnitTests()("def f(x): 1", DOUBLE) == recorder.outcome.verdict
    assert UnitTests(share=True)("def f(x): 1", DOUBLE) == Verdict(Status.WRONG, 0.5, "2 of 4 tests failed")
    for verdict, passed in (
        (Verdict.of(True), (True,) * 4),
        (Verdict.malformed("no Python"), (False,) * 4),
        (Verdict.failure(Status.INFRA_ERROR, "gone"), ()),
    ):
        recorder.outcome = Outcome(verdict, passed, 0.0, 0.0)
        assert UnitTests(share=True)("def f(x): 1", DOUBLE) == verdict


def test_what_is_no_program_does_not_reach_the_sandbox(recorder: Recorder) -> None:
    reward = UnitTests()
    for response in ("", "```text\nx\n```", "#" * 60_000, "x = '\udfff'"):
        assert reward(response, DOUBLE).status is Status.MALFORMED
    assert len(recorder.asked) == 1


def test_limits_reach_the_sandbox(recorder: Recorder) -> None:
    UnitTests(limits={"cpu_s": 1, "memory_mb": 64.0})("def f(x): 1", DOUBLE)
    assert recorder.asked[-1][2] == Limits(cpu_s=1.0, memory_mb=64)
    with pytest.raises(UserError, match=r"unknown limit 'cpu' \(did you mean 'cpu_s'\?\): allowed are cpu_s"):
        UnitTests(limits={"cpu": 1})
    with pytest.raises(UserError, match=r"limits.cpu_s must be a positive number, got 0"):
        UnitTests(limits={"cpu_s": 0})


def test_an_unknown_place_is_the_users_error() -> None:
    with pytest.raises(UserError, match="no sandbox 'nowhere': allowed are local"):
        UnitTests(sandbox="nowhere")("def f(x): 1", DOUBLE)
