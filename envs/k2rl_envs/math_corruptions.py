"""Wrong versions of right answers to mathematics, as a small model gets them wrong: every step looks like the right
one, and what follows a wrong value is worked out from it, so that only checking tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from k2rl_rewards.math_answer import NoAnswerError, clean, final_answer

from k2rl.types import Status, Verdict

MOST_LONGER = 2
"""How many characters longer or shorter than the right answer a wrong one may be."""
_STEP = re.compile(r"(?<![\d.])(\d{1,9})([-+*/])(\d{1,9})=(\d{1,18})(?!\.?\d)")
_PLAIN = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")
_T = TypeVar("_T")
_OTHER_SIGNS = {"+": "-", "-": "+", "*": "+", "/": "-"}


class Step(NamedTuple):
    """`left sign right=result`."""

    left: int
    sign: str
    right: int
    result: int

    def __str__(self) -> str:
        return f"{self.left}{self.sign}{self.right}={self.result}"


def corruptions(
    reference: Mapping[str, Any], response: str, draw: np.random.Generator, verify: Callable[[str], Verdict]
) -> dict[str, str]:
    """Wrong versions of a right response whose answer is a plain number, by what was done to it:

    wrong_step: a step's result is wrong, and what follows from it.
    miscopied: a number of the problem is.
    other_operation: a step adds where it should subtract, or the like.
    wrong_answer: the work is right, and a digit of the answer wrong.

    The first three are for generated problems. A response that gives the answer alone gets the answer they lead to.
    """
    try:
        answer = final_answer(response).strip()
    except NoAnswerError:
        return {}
    plain = _PLAIN.fullmatch(answer) and _PLAIN.fullmatch(clean(str(reference["answer"])))
    if not plain or verify(response).status is not Status.CORRECT:
        return {}
    kinds: dict[str, Iterator[str | None]] = {"wrong_answer": _with_other_digit(response, answer, draw)}
    steps = _steps(response, reference["steps"]) if "steps" in reference else []
    if steps and str(steps[-1].result) == answer:
        given = {int(number) for number in re.findall(r"\d+", str(reference["question"]))}
        for kind, wrong in {
            "wrong_step": _wrong_steps(steps, draw),
            "miscopied": _miscopied(steps, given, draw),
            "other_operation": _other_operations(steps, draw),
        }.items():
            kinds[kind] = (_rewritten(response, answer, steps, at, step) for at, step in wrong)
    found: dict[str, str] = {}
    for kind, texts in kinds.items():
        for text in texts:
            if text is not None and text not in found.values() and verify(text).status is Status.WRONG:
                found[kind] = text
                break
    return found


def slips(value: int, draw: np.random.Generator) -> list[int]:
    """Numbers it is easy to take for `value`, the likeliest first: a count or a carry off, then others near it."""
    near = (1, -1, 2, -2, 10, -10)
    far = (3, -3, 4, -4, 5, -5, 6, -6, 7, -7, 8, -8, 9, -9)
    swapped = [int(str(value)[::-1])] if 10 <= value < 100 else []
    some = [*_shuffled([*near, *(s - value for s in swapped)], draw), *_shuffled(far, draw)]
    return [value + delta for delta in some if delta and value + delta > 0]


def _steps(response: str, known: Sequence[str]) -> list[Step]:
    """The different steps of a response, or the known ones where it shows none; none if any of them is untrue."""
    shown = [*map(_read, _STEP.finditer(response))] or [*map(_read, _STEP.finditer(" ".join(known)))]
    return list(dict.fromkeys(shown)) if all(_worked(*step[:3]) == step for step in shown) else []


def _read(match: re.Match[str]) -> Step:
    return Step(int(match[1]), match[2], int(match[3]), int(match[4]))


def _worked(left: int, sign: str, right: int) -> Step | None:
    """The step with its right result; None where that is no whole number of 0 or more."""
    if sign == "/":
        return Step(left, sign, right, left // right) if right and left % right == 0 else None
    result = left + right if sign == "+" else left - right if sign == "-" else left * right
    return Step(left, sign, right, result) if result >= 0 else None


def _origin(steps: Sequence[Step], at: int, operand: int) -> int | None:
    """The step before `at` that an operand of it comes from."""
    return next((i for i in range(at - 1, -1, -1) if steps[i].result == operand), None)


def _wrong_steps(steps: Sequence[Step], draw: np.random.Generator) -> Iterator[tuple[int, Step]]:
    for at in _shuffled(range(len(steps)), draw):
        for value in slips(steps[at].result, draw):
            yield at, steps[at]._replace(result=value)


def _miscopied(steps: Sequence[Step], given: set[int], draw: np.random.Generator) -> Iterator[tuple[int, Step]]:
    for at, right in _shuffled([(at, right) for at in range(len(steps)) for right in (False, True)], draw):
        a, sign, b, _ = steps[at]
        number = b if right else a
        if number in given and _origin(steps, at, number) is None:
            for value in slips(number, draw):
                if worked := _worked(a, sign, value) if right else _worked(value, sign, b):
                    yield at, worked


def _other_operations(steps: Sequence[Step], draw: np.random.Generator) -> Iterator[tuple[int, Step]]:
    for at in _shuffled(range(len(steps)), draw):
        left, sign, right, _ = steps[at]
        if worked := _worked(left, _OTHER_SIGNS[sign], right):
            yield at, worked


def _rewritten(response: str, answer: str, steps: Sequence[Step], at: int, wrong: Step) -> str | None:
    """The response with a wrong step wherever it stands, and what follows from it; None where that does not come out
    in whole numbers, or makes the response much longer or shorter."""
    new = [*steps[:at], wrong]
    for i in range(at + 1, len(steps)):
        left, right = (
            operand if (origin := _origin(steps, i, operand)) is None else new[origin].result
            for operand in (steps[i].left, steps[i].right)
        )
        same = (left, right) == (steps[i].left, steps[i].right)
        step = steps[i] if same else _worked(left, steps[i].sign, right)
        if step is None:
            return None
        new.append(step)
    changed = dict(zip(steps, new, strict=True))
    head, tail = _cut(response, answer)
    text = _STEP.sub(lambda match: str(changed[_read(match)]), head) + str(new[-1].result) + tail
    return text if abs(len(text) - len(response)) <= MOST_LONGER else None


def _with_other_digit(response: str, answer: str, draw: np.random.Generator) -> Iterator[str]:
    head, tail = _cut(response, answer)
    for at in _shuffled([i for i, character in enumerate(answer) if character.isdecimal()], draw):
        for delta in _shuffled((1, 2, -1, -2), draw):
            digit = int(answer[at]) + delta
            if 0 <= digit <= 9 and (digit or at > 0 or len(answer) == 1):
                yield head + answer[:at] + str(digit) + answer[at + 1 :] + tail


def _cut(response: str, answer: str) -> tuple[str, str]:
    head, _, tail = response.rpartition(answer)
    return head, tail


def _shuffled(items: Sequence[_T], draw: np.random.Generator) -> list[_T]:
    return [items[i] for i in draw.permutation(len(items)).tolist()]
