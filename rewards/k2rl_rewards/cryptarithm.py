"""Whether digits for letters solve a cryptarithm such as SEND + MORE = MONEY: any digits that keep the rules."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from k2rl.types import Verdict
from k2rl_rewards.math_answer import NoAnswerError
from k2rl_rewards.puzzle import marked_answer

_ASSIGNMENT = re.compile(r"([A-Za-z])\s*(?:=|:|->)\s*([0-9])")
_SEPARATOR = re.compile(r"\s*[,;\n]\s*|\s+and\s+|\s+")


class Cryptarithm:
    """The reward of a cryptarithm; the reference is `{"addends": ["SEND", "MORE"], "total": "MONEY", "given":
    {"M": 1}}`.

    The answer (`marked_answer`) is a digit for every letter, `D=7, E=5, …`, in any order; those of given letters may
    be left out. Malformed: anything else in it, a letter that is missing, foreign or named twice. Wrong: two letters
    share a digit, a number starts with 0, a given digit is changed, the sum does not hold.
    """

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        addends, total = list(cast(Sequence[str], reference["addends"])), str(reference["total"])
        given = {str(k): int(v) for k, v in cast(Mapping[str, int], reference["given"]).items()}
        letters = sorted(set("".join([*addends, total])))
        try:
            said = _assignments(marked_answer(response), letters)
        except NoAnswerError as error:
            return Verdict.malformed(str(error))
        digits = {**given, **said}
        if missing := [c for c in letters if c not in digits]:
            return Verdict.malformed(f"no digit for {', '.join(missing)}")
        problem = _problem(digits, given, addends, total)
        return Verdict.of(not problem, problem)


def _assignments(answer: str, letters: Sequence[str]) -> dict[str, int]:
    digits: dict[str, int] = {}
    # A space around the sign is no separator.
    compact = re.sub(r"\s*(=|:|->)\s*", r"\1", answer.strip(" \t*`$").removesuffix("."))
    for part in _SEPARATOR.split(compact):
        found = _ASSIGNMENT.fullmatch(part)
        if found is None:
            raise NoAnswerError(f"{part[:20]!r} is no letter with its digit")
        letter = found[1].upper()
        if letter not in letters:
            raise NoAnswerError(f"{letter} is no letter of this puzzle")
        if letter in digits:
            raise NoAnswerError(f"{letter} is named twice")
        digits[letter] = int(found[2])
    return digits


def _problem(digits: Mapping[str, int], given: Mapping[str, int], addends: Sequence[str], total: str) -> str:
    """What is wrong with the digits, or ""."""
    for letter, digit in given.items():
        if digits[letter] != digit:
            return f"{letter} is {digit}, not {digits[letter]}"
    owner: dict[int, str] = {}
    for letter, digit in sorted(digits.items()):
        if owner.setdefault(digit, letter) != letter:
            return f"{owner[digit]} and {letter} are both {digit}"
    for word in (*addends, total):
        if len(word) > 1 and digits[word[0]] == 0:
            return f"{word} starts with 0"
    *summands, claimed = [int("".join(str(digits[c]) for c in word)) for word in (*addends, total)]
    if sum(summands) != claimed:
        return f"{' + '.join(map(str, summands))} is {sum(summands)}, not {claimed}"
    return ""
