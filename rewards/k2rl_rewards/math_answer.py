"""Whether a response's final answer equals the gold answer.

The final answer is, in this order:

1. what the last `\\boxed{…}` (or `\\fbox`, `\\framebox`) holds; boxes with nothing but a comma, "and" or "or" between
   them are one answer, a list;
2. the line after the last `####`;
3. the rest of the sentence after the last "the answer is" or "answer:".

A response with none of them is malformed, however often the gold answer occurs elsewhere in it, and what is said
before or after the final answer changes nothing. What equals what: see `math_forms`.

Plain numbers, words, choices and units are compared here, exactly and at once. Formulas go to math-verify, which can
run for ever or eat all memory on a hostile answer (`9^{9^{9}}`), and whose own time-outs work in a main thread only; so
it lives in child processes that can be killed (`grader.py`).
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping

from k2rl.errors import UserError
from k2rl.types import Verdict
from k2rl_rewards.grader import GraderPool, attributed
from k2rl_rewards.math_forms import equal

MAX_CHARS = 200
"""The longest answer that reaches the grader, in characters (a long gold answer allows twice its length)."""
MAX_GOLD_CHARS = 1_000
"""Of a longer gold answer only its own spelling is correct."""
MAX_NESTING = 20
"""The deepest nesting of brackets that reaches the grader."""


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
    """What the last `\\boxed{…}` holds, or the last ones if they are a list; None where there is none.

    Raises:
        NoAnswerError: its braces are unbalanced.
    """
    boxes = list(_BOXED.finditer(text))
    if not boxes:
        return None
    found = [boxes[-1]["bare"] or _closed(text, boxes[-1].end())]
    for box, after in zip(boxes[-2::-1], boxes[:0:-1], strict=True):
        segment = text[box.end() : after.start()]
        try:
            inside = box["bare"] or _closed(segment, 0)
        except NoAnswerError:
            break
        if not _BETWEEN_BOXES.fullmatch(segment, 0 if box["bare"] else len(inside) + 1):
            break
        if inside != found[-1]:
            found.append(inside)
    return ", ".join(found[::-1])


def _closed(text: str, start: int) -> str:
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
    text = re.sub(r"(?<!\\)\\[()\[\]]", "", text).strip().strip("*")
    text = re.sub(r"(?<=\d)\\,(?=\d{3})", "", text)
    text = re.sub(r"(?<!\\)\\[,;: ]|~|\\q?quad\b", " ", text).strip().removesuffix(".").strip()
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


_PHRASE = re.compile(r"\bthe\s+(?:final\s+)?answer\s+is\b|\banswer\s*:", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?=\s|$)")
_BOXED = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?:\{|(?P<bare>-?\d[\d.,]*(?<=\d)|[A-Za-z])(?![A-Za-z]))")
_BETWEEN_BOXES = re.compile(r"[\s$]*(?:[,;]\s*)?(?:\\text\{\s*(?:and|or)\s*\}|and|or)?[\s$]*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BRACKET = re.compile(r"\\\\|\\?[()\[\]{}]")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
# Powers of powers of numbers, and powers and factorials of numbers of five digits or more: minutes of work.
_HUGE = re.compile(r"(?:\^[\s{(]*\d+[\s)}]*){3}|\^[\s{(]*-?\d{5,}|\d{5,}[\s)}]*!|!\s*!")
_TOWER = re.compile(r"\^[\s{(]*(?=(\d{1,4})[\s)}]*\^[\s{(]*(\d{1,4}))")


class MathAnswer:
    """The reward of a mathematical answer; `reference["answer"]` is the gold one.

    Wrong: another value, several candidates where the gold answer is one, sides of an equation that are not
    all equal to it. Malformed: no final answer, one longer than `MAX_CHARS`, or one that alone makes the
    grader fail, time after time.

    Args:
        deadline_s: seconds of wall time the grader has for one comparison.

    Raises:
        UserError: a deadline that is none, or (when called) a reference without `answer`.
    """

    def __init__(self, deadline_s: float = 5.0) -> None:
        if not deadline_s > 0:
            raise UserError(f"deadline_s must be more than 0 seconds, got {deadline_s!r}")
        self.deadline_s = deadline_s

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        _ = _gold(reference)  # What is wrong with it shows whatever the response is.
        try:
            answer = final_answer(response)
        except NoAnswerError as error:
            return Verdict.malformed(str(error))
        return self.bare(answer, reference)

    def bare(self, answer: str, reference: Mapping[str, object]) -> Verdict:
        """The verdict on an answer without the search for it in a response, as evaluation data has it."""
        gold = _gold(reference)
        with contextlib.suppress(NoAnswerError):
            gold = final_answer(gold)
        return self.compare(answer, gold)

    def compare(self, answer: str, gold: str) -> Verdict:
        """The verdict on a bare answer, without the search for it in a response.

        `MathAnswer().compare("1/2", "0.5")` is correct; a response such as `"1/2"` alone would be malformed.
        """
        if len(answer) > max(MAX_CHARS, 2 * len(gold)):
            return Verdict.malformed(f"the final answer has {len(answer)} characters, the limit is {MAX_CHARS}")
        if not clean(answer):
            return Verdict.malformed("the final answer is empty")
        if (nesting := _nesting(answer)) < 0:
            return Verdict.malformed(f"unbalanced braces in {answer!r}")
        if clean(answer) == clean(gold):
            return Verdict.of(True)
        if len(gold) > MAX_GOLD_CHARS:
            return Verdict.of(False, "not the gold answer, which is too long to be compared otherwise than as written")
        if nesting > max(MAX_NESTING, _nesting(gold)):
            return Verdict.malformed(f"{answer!r} nests brackets {nesting} deep, the limit is {MAX_NESTING}")
        if _huge(answer) and not _huge(gold):
            return Verdict.malformed(f"{answer!r} holds a power or factorial too large to work out")
        wrong = f"{answer} is not {gold}"
        with contextlib.suppress(_UndecidedError):
            passed = equal(gold, answer, _undecided)
            return Verdict.of(passed, "" if passed else wrong)
        if (verdict := _known.get((gold, answer))) is None:
            verdict = attributed(
                attempt=lambda: bool(_graders.call(gold, answer, deadline_s=self.deadline_s)),
                control=lambda: bool(_graders.call(gold, None, deadline_s=self.deadline_s)),
                wrong=wrong,
            )
            if verdict.scored:
                if len(_known) >= 10_000:
                    _known.clear()
                _known[gold, answer] = verdict
        return verdict


def _gold(reference: Mapping[str, object]) -> str:
    if reference.get("answer") is None:
        raise UserError(f"the reference has no answer, only {', '.join(reference) or 'nothing'}")
    return str(reference["answer"])


class _UndecidedError(Exception):
    """Only math-verify can tell."""


def _undecided(gold: str, answer: str) -> bool:
    raise _UndecidedError


def _nesting(text: str) -> int:
    """How deep brackets of all kinds go; -1 if the braces don't match."""
    braces = depth = deepest = 0
    for bracket in _BRACKET.finditer(text):
        mark = bracket.group()
        braces += {"{": 1, "}": -1}.get(mark, 0)
        if braces < 0:
            return -1
        depth += 1 if mark[-1] in "([{" else -1 if mark[-1] in ")]}" else 0
        deepest = max(deepest, abs(depth))
    return deepest if braces == 0 else -1


def _huge(text: str) -> bool:
    text = text.replace("**", "^")
    towers = ((int(base), int(exponent)) for base, exponent in _TOWER.findall(text))
    return _HUGE.search(text) is not None or any(b > 1 and e * math.log10(b) > 3 for b, e in towers)


_graders = GraderPool("k2rl_rewards.math_grader:math_grader")
# The K responses to one task often give the same answer, hanging ones included.
_known: dict[tuple[str, str], Verdict] = {}
