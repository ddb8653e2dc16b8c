"""The contract of short answers: what is marked counts, whole and alone."""

from __future__ import annotations

import pytest
from k2rl_rewards.math_answer import NoAnswerError
from k2rl_rewards.puzzle import ShortAnswer, marked_answer

from k2rl.types import Status, Verdict


def verdict(response: str, answer: str = "PINE CABIN") -> Verdict:
    return ShortAnswer()(response, {"answer": answer})


@pytest.mark.parametrize(
    "response",
    [
        "#### PINE CABIN",
        "first OAK #### OAK\nno, #### pine  cabin.",
        "#### **Pine Cabin**\nthat is it",
        '####\n\n "PINE CABIN".',
        "\\boxed{\\text{PINE CABIN}}",
        "#### Solution\nso \\boxed{PINE CABIN}",
    ],
)
def test_right_answers(response: str) -> None:
    assert verdict(response) == Verdict.of(True)


@pytest.mark.parametrize(
    "answer",
    ["PINE", "PINE CABIN OAK", "PINE, CABIN", "PINE CABIN or OAK", "it is PINE CABIN", "PINECABIN", "PINE CABIN" * 2],
)
def test_wrong_answers(answer: str) -> None:
    assert verdict(f"PINE CABIN #### {answer}").status is Status.WRONG


@pytest.mark.parametrize(
    "response",
    [
        "",
        "PINE CABIN",
        "####",
        "#### PINE CABIN ####",
        "\\boxed{PINE CABIN",
        "\\boxed{}",
        "#### " + "PINE CABIN " * 200,
    ],
)
def test_what_is_not_marked_is_malformed(response: str) -> None:
    assert verdict(response).status is Status.MALFORMED


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("1942", True),
        ("1,942", True),
        ("$1,942$", True),
        ("1942.", True),
        ("1942.0", False),
        ("19,42", False),
        ("01942", False),
        ("-1942", False),
        ("1941+1", False),
        ("1 942", False),
        ("1942 coins", False),
    ],
)
def test_numbers(answer: str, right: bool) -> None:
    assert verdict(f"#### {answer}", "1942") == Verdict.of(right, "" if right else f"{answer!r} is not '1942'")


def test_the_marked_answer_is_one_paragraph() -> None:
    assert marked_answer("a\n#### \n1 2\n3 4\n \nand so on") == "1 2\n3 4"
    assert marked_answer("#### x\n\\boxed{y}") == "y"
    assert marked_answer("\\boxed{y} #### x") == "x"
    with pytest.raises(NoAnswerError, match="limit is 3"):
        marked_answer("#### 1234", 3)
