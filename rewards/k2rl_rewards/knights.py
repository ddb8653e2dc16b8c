"""Whether a response says rightly who is a knight and who is a knave.

The statement is what follows the last `####`, else the whole response. It is cut at the names; what stands
between a name and the next one must settle that name: the word knight or the word knave, and no word that
takes it back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import cast

from k2rl.types import Verdict
from k2rl_rewards.math_answer import after_hashes

MAX_CHARS = 10_000

_ROLE = re.compile(r"\b(knight|knave)s?\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.;!\n]")
_HEDGE = re.compile(
    r"\b(?:not|or|either|neither|nor|if|unless|maybe|perhaps|possibly|both|cannot)\b|n't\b|\?|/",
    re.IGNORECASE,
)


class KnightsAndKnaves:
    """The reward of a knights-and-knaves puzzle; the reference is `{"names": […], "solution": [bool, …]}`,
    true for a knight.

    Malformed: a name is left out, hedged ("a knight or a knave") or called both. Wrong: a name is called the
    other. All names must be right.
    """

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        names = [str(n) for n in cast(Sequence[str], reference["names"])]
        solution = [bool(s) for s in cast(Sequence[bool], reference["solution"])]
        text = after_hashes(response)
        text = response if text is None else text
        if len(text) > MAX_CHARS:
            return Verdict.malformed(f"the statement has {len(text)} characters, the limit is {MAX_CHARS}")
        said: dict[str, str] = {}
        for name, clause in _clauses(text, names):
            roles = {r.lower() for r in _ROLE.findall(clause)}
            if not roles:
                continue
            sentence = _SENTENCE_END.split(clause, maxsplit=1)[0]
            if len(roles) > 1 or _HEDGE.search(sentence) or said.setdefault(name, *roles) not in roles:
                return Verdict.malformed(f"does not settle on one of knight and knave for {name}")
        missing = [n for n in names if n not in said]
        if missing:
            return Verdict.malformed(f"does not say whether {' and '.join(missing)} is a knight or a knave")
        truth = {n: "knight" if s else "knave" for n, s in zip(names, solution, strict=True)}
        false = [n for n in names if said[n] != truth[n]]
        return Verdict.of(not false, f"wrong about {', '.join(false)}" if false else "")


def statement(names: Sequence[str], solution: Sequence[bool]) -> str:
    """`Ann is a knight, Bob is a knave`."""
    return ", ".join(f"{n} is a {'knight' if s else 'knave'}" for n, s in zip(names, solution, strict=True))


def _clauses(text: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Each mention of a name, with the text up to the next mention."""
    known = {n.casefold(): n for n in names}
    longest_first = sorted(names, key=len, reverse=True)
    mention = re.compile(rf"\b({'|'.join(map(re.escape, longest_first))})\b", re.IGNORECASE)
    found = list(mention.finditer(text))
    ends = [*(m.start() for m in found[1:]), len(text)]
    return [(known[m[1].casefold()], text[m.end() : end]) for m, end in zip(found, ends, strict=False)]
