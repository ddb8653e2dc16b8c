"""The contract of the countdown reward: exact, bounded, every number once."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from k2rl_rewards.countdown import Countdown, ExpressionError, evaluate

from k2rl.types import Verdict


def verdict(response: str, numbers: tuple[int, ...] = (3, 8, 2), target: int = 26) -> Verdict:
    return Countdown()(response, {"numbers": list(numbers), "target": target})


@pytest.mark.parametrize(
    "response",
    [
        "8*3=24 24+2=26 #### 8*3+2",
        "#### 3*8+2 = 26",
        "#### (3 × 8) + 2.",
        "#### ((8)*(3))+2\nas wanted",
        "\\boxed{3 \\times 8 + 2}",
        "#### 1 no #### 2+3*8",
        "#### Solution\nso \\boxed{2+3*8}",
    ],
)
def test_right_expressions(response: str) -> None:
    assert verdict(response) == Verdict.of(True)


@pytest.mark.parametrize(
    ("expression", "detail"),
    [
        ("8*3-2", "makes 22, not 26"),
        ("8/3+2", "makes 14/3, not 26"),
        ("8*3+2 = 25", "makes 26, but claims 25"),
        ("8*3", "does not use 2"),
        ("8*3+2+3-3", "uses 3 3 times"),
        ("3*8+3-1", "uses 3 twice"),
        ("26", "uses 26, which is not given"),
        ("8*3+2/(3-3)", "divides by zero"),
    ],
)
def test_wrong_expressions_say_why(expression: str, detail: str) -> None:
    assert verdict(f"#### {expression}") == Verdict.of(False, detail)


@pytest.mark.parametrize(
    "response",
    [
        "8*3+2",
        "",
        "####",
        "#### expression",
        "Use 3 8 2 to make 26",
        "#### 8*3+2 or 8*3-2",
        "#### 8*3+2, 26",
        "#### 8*3+2 = 26 = 26",
        "#### 26 = 8*3+2",
        "#### -2+3*8",
        "#### 8*3+-2",
        "#### 8**3+2",
        "#### 8^3+2",
        "#### 8//3+2",
        "#### 9**9**9",
        "#### 8*3+2.0",
        "#### 8e0*3+2",
        "#### 8 3 2",
        "#### (8*3+2",
        "#### 8*3+2)",
        "#### 8*3+",
        "#### ٨*3+2",
        "#### __import__('os').system('true')",
        "#### " + "(" * 60 + "8*3+2" + ")" * 60,
        "#### " + "(" * 100_000,
        "#### " + "8" * 100_000,
        "#### 8888888888888",
        "\\boxed{8*3+2",
    ],
)
def test_unreadable_expressions_are_malformed_at_once(response: str) -> None:
    start = time.perf_counter()
    found = verdict(response)
    assert (found.status.value, found.score) == ("malformed", 0.0)
    assert found.detail
    assert time.perf_counter() - start < 0.5


def test_repeated_numbers_are_counted() -> None:
    assert verdict("#### 3+3", (3, 3), 6) == Verdict.of(True)
    assert verdict("#### 3", (3, 3), 3).detail == "does not use 3 twice"
    assert verdict("#### 3+3+3", (3, 3), 9).detail == "uses 3 3 times, given twice"


def test_precedence_associativity_and_fractions() -> None:
    value, used = evaluate("8-3-2")
    assert value == 3
    assert used == [8, 3, 2]
    assert evaluate("8/2/2")[0] == 2
    assert evaluate("2+3*4")[0] == 14
    assert evaluate("8÷(3−8÷3)".replace("÷", "/").replace("−", "-"))[0] == 24
    assert evaluate("1/3")[0] == Fraction(1, 3)
    with pytest.raises(ExpressionError, match="can't read"):
        evaluate("2 plus 3")
    with pytest.raises(ZeroDivisionError):
        evaluate("1/(2-2)")
