"""The contract of the knights-and-knaves reward: everyone settled, nothing hedged."""

from __future__ import annotations

import pytest
from k2rl_rewards.knights import KnightsAndKnaves, statement

from k2rl.types import Verdict

NAMES, SOLUTION = ["Ann", "Bob", "Annabel"], [True, False, True]


def verdict(response: str) -> Verdict:
    return KnightsAndKnaves()(response, {"names": NAMES, "solution": SOLUTION})


@pytest.mark.parametrize(
    "response",
    [
        "#### " + statement(NAMES, SOLUTION),
        "#### (1) Ann is a knight\n(2) Bob is a knave\n(3) Annabel is a knight",
        "Ann is a knave? No. #### Bob: KNAVE, annabel = knight; ann - knight",
        "#### **Ann** is a knight, **Bob** is a knave, and **Annabel** is a knight.",
        "Ann is a knight, Bob is a knave, Annabel is a knight. This does not contradict anything.",
        "#### Ann is a knight, Bob is a knave, Annabel is a knight, so Bob is a knave",
    ],
)
def test_right_statements(response: str) -> None:
    assert verdict(response) == Verdict.of(True)


def test_a_wrong_role_is_wrong_whoever_else_is_right() -> None:
    found = verdict("#### Ann is a knight, Bob is a knight, Annabel is a knave")
    assert found == Verdict.of(False, "wrong about Bob, Annabel")


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        ("", "Ann"),
        ("####", "Ann"),
        ("#### Ann is a knight, Bob is a knave", "Annabel"),
        ("#### Ann is a knight, Bob is a knight or a knave, Annabel is a knight", "Bob"),
        ("#### Ann is a knight, Bob is a knight, Bob is a knave, Annabel is a knight", "Bob"),
        ("#### Ann is a knight, Bob is not a knight, Annabel is a knight", "Bob"),
        ("#### Ann is a knight, Bob is either a knave, Annabel is a knight", "Bob"),
        ("#### Ann is a knight, Bob is knight/knave, Annabel is a knight", "Bob"),
        ("Suppose Ann is a knight. Then Ann is a knave. Bob is a knave. Annabel is a knight.", "Ann"),
        ("#### (name) is a knight, (name) is a knave", "Ann"),
        ("Ann says that Bob is a knave. Who is a knight and who is a knave?", "Bob"),
        ("#### " + "Ann is a knight " * 10_000, "characters"),
    ],
)
def test_unsettled_statements_are_malformed(response: str, detail: str) -> None:
    found = verdict(response)
    assert (found.status.value, found.score) == ("malformed", 0.0)
    assert detail in found.detail
