"""Whether a response says rightly who is a knight and who is a knave.

The statement is the response's final answer (`puzzle.marked_answer`). It is read clause by clause, `Ann is a knight`,
`(1) Ann: knight` or `Ann = knight`, joined by commas, new lines or `and`; nothing else may stand in it, so nothing can
be hedged, taken back or buried.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from k2rl.types import Verdict
from k2rl_rewards.math_answer import NoAnswerError
from k2rl_rewards.puzzle import marked_answer

MAX_CHARS = 10_000

_JOINT = re.compile(r"(?:[\s,;.]|(?:and|but|so|while)\b)*", re.IGNORECASE)


class KnightsAndKnaves:
    """The reward of a knights-and-knaves puzzle; the reference is `{"names": […], "solution": [bool, …]}`,
    true for a knight.

    Malformed: a name is left out or called both, or the statement holds something that can't be read. Wrong: a name
    is called the other. All names must be right.
    """

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        names = [str(n) for n in cast(Sequence[str], reference["names"])]
        solution = [bool(s) for s in cast(Sequence[bool], reference["solution"])]
        try:
            said = _roles(marked_answer(response, MAX_CHARS), names)
        except NoAnswerError as error:
            return Verdict.malformed(str(error))
        missing = [n for n in names if n not in said]
        if missing:
            return Verdict.malformed(f"does not say whether {' and '.join(missing)} is a knight or a knave")
        truth = {n: "knight" if s else "knave" for n, s in zip(names, solution, strict=True)}
        false = [n for n in names if said[n] != truth[n]]
        return Verdict.of(not false, f"wrong about {', '.join(false)}" if false else "")


def statement(names: Sequence[str], solution: Sequence[bool]) -> str:
    """`Ann is a knight, Bob is a knave`."""
    return ", ".join(f"{n} is a {'knight' if s else 'knave'}" for n, s in zip(names, solution, strict=True))


def _roles(text: str, names: Sequence[str]) -> dict[str, str]:
    """Name -> "knight" or "knave", as far as the statement goes."""
    known = {n.casefold(): n for n in names}
    longest_first = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    clause = re.compile(
        rf"(?:\(?\d{{1,3}}[).:]\s*)?[*_\"']*({longest_first})(?!\w)[*_\"']*"
        r"\s*(?:(?:is|->|[=:–-])\s*)?(?:a\s+)?[*_]*(knight|knave)\b[*_]*",
        re.IGNORECASE,
    )
    said: dict[str, str] = {}
    place = 0
    while (place := _end(_JOINT, text, place)) < len(text):
        found = clause.match(text, place)
        # `re` takes a few letters for equal that casefold tells apart.
        name = known.get(found[1].casefold()) if found else None
        if found is None or name is None:
            raise NoAnswerError(f"can't read {text[place : place + 40]!r}")
        role = found[2].lower()
        if said.setdefault(name, role) != role:
            raise NoAnswerError(f"calls {name} both a knight and a knave")
        place = found.end()
    return said


def _end(pattern: re.Pattern[str], text: str, place: int) -> int:
    found = pattern.match(text, place)
    return found.end() if found else place
