"""Whether a response's final answer equals the gold answer.

The final answer is, in this order: the last `\\boxed{…}`; the line after the last `####`; the rest of the
sentence after the last "the answer is" or "answer:". A response with none of them is malformed, however often
the gold answer occurs elsewhere in it.

Numbers (integers, decimals, fractions) are compared exactly and at once. Everything else goes to math-verify,
which can run for ever or eat all memory on a hostile answer (`9^{9^{9}}`), and whose own time-outs work in a
main thread only; so it lives in a child process that can be killed (`grader.py`).
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from k2rl.errors import UserError
from k2rl.types import Status, Verdict
from k2rl_rewards.grader import GraderProcess, attributed

MAX_CHARS = 200
"""The longest answer that reaches the grader, in characters (a long gold answer allows twice its length)."""


class NoAnswerError(ValueError):
    """The response holds no final answer; the message says why."""


def final_answer(response: str) -> str:
    """The final answer by the rule above, as written.

    Raises:
        NoAnswerError: there is none.
    """
    boxed = last_boxed(response)
    if boxed is not None:
        return " ".join(boxed.split())
    tail = after_hashes(response)
    if tail is not None:
        return tail.partition("\n")[0]
    phrases = list(_PHRASE.finditer(response))
    if not phrases:
        raise NoAnswerError("no final answer found")
    line = response[phrases[-1].end() :].lstrip(" \t\r\n:*").partition("\n")[0]
    return _SENTENCE_END.split(line, maxsplit=1)[0]


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{…}` holds; None where there is none.

    Raises:
        NoAnswerError: its braces are unbalanced.
    """
    opened = list(_BOXED.finditer(text))
    if not opened:
        return None
    start = opened[-1].end()
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start : brace.start()]
    raise NoAnswerError("the last \\boxed{ is never closed")


def after_hashes(text: str) -> str | None:
    """What follows the last `####`, stripped; None where there is none."""
    _, marker, tail = text.rpartition("####")
    return tail.strip() if marker else None


def clean(answer: str) -> str:
    """The answer without marks that don't change it: `$`, `\\(…\\)`, bold, the period, thousands commas."""
    text = answer.replace("\\$", "").replace("$", "").replace("−", "-").replace("\\!", "").replace("{,}", ",")
    text = re.sub(r"\\[()\[\]]", "", text).strip().strip("*")
    text = re.sub(r"(?<=\d)\\,(?=\d{3})", "", text)
    text = re.sub(r"\\[,;: ]|~|\\q?quad\b", " ", text).strip().removesuffix(".").strip()
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def plain_number(text: str) -> Fraction | None:
    """The value of an integer, decimal, fraction or mixed number (also `\\frac{a}{b}`); None for all else."""
    text = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r" \1/\2", text).strip()
    found = _PLAIN.fullmatch(text)
    if found is None:
        return None
    whole, over, part, under = found.group("whole", "over", "part", "under")
    if (over and Fraction(over) == 0) or (under and int(under) == 0):
        return None
    value = Fraction(whole) / (Fraction(over) if over else 1) + (Fraction(int(part), int(under)) if part else 0)
    return -value if found.group("sign") == "-" else value


_PHRASE = re.compile(r"\bthe\s+(?:final\s+)?answer\s+is\b|\banswer\s*:", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)")
_BOXED = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_PLAIN = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<whole>{_NUMBER})(?:\s*/\s*(?P<over>{_NUMBER})|\s+(?P<part>\d+)/(?P<under>\d+))?",
    re.ASCII,
)
_UNIT = re.compile(r"(?P<number>[+-]?[\d./ ]*\d)\s+(?P<words>[a-z]{2,}(?: [a-z]{2,}){0,2})", re.IGNORECASE)
# Words after a number that are no unit: they change its value, or start a second candidate.
_NO_UNIT = re.compile(
    r"\b(?:and|or|nor|not|but|versus|plus|minus|times|over|to|by|squared|cubed|pi|percent|half|halves|"
    r"(?:third|quarter|fourth|fifth|tenth|hundredth|thousandth|ten|dozen|score|hundred|thousand|million|billion|"
    r"trillion)s?|one|two|three|four|five|six|seven|eight|nine|eleven|twelve)\b",
    re.IGNORECASE,
)
_SEVERAL = re.compile(r"[,;±]|\b(?:or|and)\b|\\(?:pm|mp|cup|vee|lor|land|wedge)\b|\d\s+\d")
_EQUALS = re.compile(r"(?<![<>!:])=")
# Powers of powers of numbers, and powers and factorials of numbers of five digits or more: minutes of work.
_HUGE = re.compile(r"\^[\s{(]*\d+[\s)}]*\^|\^[\s{(]*-?\d{5,}|\d{5,}[\s)}]*!|!\s*!")
_LABEL = re.compile(r"[A-Za-z][A-Za-z ]*(?:_\{?\w+\}?)?(?:\([A-Za-z]\))?")
_WRAPPER = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z]{3,}(?: [A-Za-z]+)*")


class MathAnswer:
    """The reward of a mathematical answer; `reference["answer"]` is the gold one.

    Wrong: another value, several candidates where the gold answer is one, sides of an equation that are not
    all equal to it. Malformed: no final answer, one longer than `MAX_CHARS`, or one that alone makes the
    grader fail, time after time.

    Args:
        deadline_s: seconds of wall time the grader has for one comparison.
    """

    def __init__(self, deadline_s: float = 5.0) -> None:
        if not deadline_s > 0:
            raise UserError(f"deadline_s must be more than 0 seconds, got {deadline_s!r}")
        self.deadline_s = deadline_s

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        try:
            answer = final_answer(response)
        except NoAnswerError as error:
            return Verdict.malformed(str(error))
        return self.bare(answer, reference)

    def bare(self, answer: str, reference: Mapping[str, object]) -> Verdict:
        """The verdict on an answer without the search for it in a response, as evaluation data has it."""
        gold = str(reference["answer"])
        with contextlib.suppress(NoAnswerError):
            gold = final_answer(gold)
        return self.compare(answer, gold)

    def compare(self, answer: str, gold: str) -> Verdict:
        """The verdict on a bare answer, without the search for it in a response.

        `MathAnswer().compare("1/2", "0.5")` is correct; a response such as `"1/2"` alone would be malformed.
        """
        if len(answer) > max(MAX_CHARS, 2 * len(gold)):
            return Verdict.malformed(f"the final answer has {len(answer)} characters, the limit is {MAX_CHARS}")
        answer, gold = clean(answer), clean(gold)
        if not answer:
            return Verdict.malformed("the final answer is empty")
        if not _balanced(answer):
            return Verdict.malformed(f"unbalanced braces in {answer!r}")
        if _spelling(answer) == _spelling(gold):
            return Verdict.of(True)
        if _HUGE.search(answer.replace("**", "^")) and not _HUGE.search(gold):
            return Verdict.malformed(f"{answer!r} holds a power or factorial too large to work out")
        if _SEVERAL.search(answer) and not _SEVERAL.search(gold) and plain_number(answer) is None:
            return Verdict.of(False, f"{answer!r} lists several candidates")
        answers, gold = _sides(answer, gold)
        for side in answers:
            verdict = self._equal(side, gold)
            if verdict.status is not Status.CORRECT:
                return verdict
        return Verdict.of(True)

    def _equal(self, answer: str, gold: str) -> Verdict:
        wanted = plain_number(gold)
        given = plain_number(_without_unit(answer) if wanted is not None else answer)
        if wanted is not None and given is not None:
            return Verdict.of(wanted == given, "" if wanted == given else f"{answer} is not {gold}")
        plain_gold = _WRAPPER.sub(r"\1", gold).strip()
        if not answer or _WORDS.fullmatch(plain_gold):
            # math-verify reads a word as a product of letters, so that "seat" would equal "east".
            return Verdict.of(_spelling(answer) == _spelling(gold), f"{answer!r} is not {gold!r}")
        if (verdict := _known.get((gold, answer))) is None:
            verdict = attributed(
                attempt=lambda: bool(_grader.call(gold, answer, deadline_s=self.deadline_s)),
                control=lambda: _grader.call(gold, gold, deadline_s=self.deadline_s) is not None,
                wrong=f"{answer} is not {gold}",
            )
            if verdict.scored:
                if len(_known) >= 10_000:
                    _known.clear()
                _known[gold, answer] = verdict
        return verdict


def _spelling(text: str) -> str:
    text = re.sub(r"\\left\b|\\right\b|\s+", "", _WRAPPER.sub(r"\1", text))
    return re.sub(r"\\[dt]frac", r"\\frac", text).casefold() if _WORDS.fullmatch(text) else text


def _balanced(text: str) -> bool:
    depth = 0
    for brace in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth < 0:
            return False
    return depth == 0


def _without_unit(answer: str) -> str:
    """`72 dollars` -> `72`: a number may carry up to three words that don't change its value."""
    found = _UNIT.fullmatch(answer)
    if found is None or _NO_UNIT.search(found["words"]):
        return answer
    return found["number"]


def _sides(answer: str, gold: str) -> tuple[list[str], str]:
    """What must equal what. `x = 5` means 5; of `48+24 = 72` every side counts, or `71 = 72` would pass."""
    gold_sides = [s.strip() for s in _EQUALS.split(gold)]
    sides = [s.strip() for s in _EQUALS.split(answer)]
    if len(gold_sides) == 1 and len(sides) > 1:
        return sides[1:] if _LABEL.fullmatch(sides[0]) else sides, gold
    if len(gold_sides) == 2 and len(sides) == 1 and _LABEL.fullmatch(gold_sides[0]):
        return sides, gold_sides[1]
    return [answer], gold


def math_verify_grader() -> Callable[[str, str], bool]:
    """Runs in the child: `(gold, answer) -> equal`."""
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    # Only the box: with plain expressions allowed, "not 72" would fall back to the number in it.
    config = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(text: str) -> Any:
        return parse(
            "\\boxed{" + text.replace("**", "^") + "}",
            config,
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )

    # The parent's deadline is the only clock: an inner time-out would be swallowed as "not equal".
    return lambda gold, answer: bool(verify(read(gold), read(answer), timeout_seconds=None))


_grader = GraderProcess("k2rl_rewards.math_answer:math_verify_grader")
# The K responses to one task often give the same answer, hanging ones included.
_known: dict[tuple[str, str], Verdict] = {}
