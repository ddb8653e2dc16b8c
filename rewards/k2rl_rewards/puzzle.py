"""Where a puzzle's answer stands in a response, and whether a short answer is the right one."""

from __future__ import annotations

import re
from collections.abc import Mapping

from k2rl.types import Verdict
from k2rl_rewards.math_answer import NoAnswerError, after_hashes, last_boxed

MAX_CHARS = 1_000
"""The longest answer that is read, in characters (a long gold answer allows twice its length)."""

_BLANK_LINE = re.compile(r"\n[ \t\r]*\n")
_WRAPPER = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_THOUSANDS = re.compile(r"-?[0-9]{1,3}(?:,[0-9]{3})+")


def marked_answer(response: str, most: int = MAX_CHARS) -> str:
    """The final answer: the paragraph after the last `####`; where a `\\boxed{…}` follows that mark, or there is no
    such mark, what the last box holds. What stands anywhere else is no answer, however right.

    Raises:
        NoAnswerError: there is none, it is empty, or it has more than `most` characters.
    """
    found = after_hashes(response)
    if found is None or "\\boxed" in found:
        found = last_boxed(response)
    if found is None:
        raise NoAnswerError("no final answer found")
    found = _BLANK_LINE.split(found.strip(), maxsplit=1)[0].strip()
    if not found:
        raise NoAnswerError("the final answer is empty")
    if len(found) > most:
        raise NoAnswerError(f"the final answer has {len(found)} characters, the limit is {most}")
    return found


class ShortAnswer:
    """The reward of a puzzle with one short answer, a word, a text or a number: `reference["answer"]`.

    The answer's first line must be the gold answer's text, apart from case, runs of spaces, thousands commas,
    quotes or bold around it and a period after it. Malformed: no final answer (`marked_answer`). Wrong: everything
    else, so a list of candidates and an answer among other words as well.
    """

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        gold = str(reference["answer"])
        try:
            answer = marked_answer(response, max(MAX_CHARS, 2 * len(gold))).partition("\n")[0]
        except NoAnswerError as error:
            return Verdict.malformed(str(error))
        right = _plain(answer) == _plain(gold)
        return Verdict.of(right, "" if right else f"{answer[:80]!r} is not {gold[:80]!r}")


def _plain(answer: str) -> str:
    text = _WRAPPER.sub(r"\1", answer.replace("−", "-")).strip(" \t*_`'\"$").removesuffix(".")
    text = " ".join(text.strip(" \t*_`'\"$").split()).casefold()
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text
