"""Whether an expression uses the given numbers once each and reaches the target.

The expression is what the last `\\boxed{…}` holds, where it follows the last `####` or there is none of
these; else the line after the last `####`. It is read by the parser below, exactly and in bounded time:
whole numbers, `+ - * /` (also `×`, `÷`, `−`) and parentheses, nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import cast

from k2rl.types import Verdict
from k2rl_rewards.math_answer import NoAnswerError, after_hashes, last_boxed

MAX_CHARS = 200
MAX_DEPTH = 50
MAX_DIGITS = 12

_TOKEN = re.compile(r"\s*([0-9]+|[-+*/()])")
_SYNONYMS = {"×": "*", "÷": "/", "−": "-", "\\times": "*", "\\cdot": "*", "\\div": "/", "$": ""}


class Countdown:
    """The reward of a countdown puzzle; the reference is `{"numbers": […], "target": n}`.

    Malformed: no expression, or one that can't be read. Wrong: one that uses other numbers, divides by zero
    or makes something else. A trailing `= value` is allowed where it is right.
    """

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        numbers = [int(n) for n in cast(Sequence[int], reference["numbers"])]
        target = int(cast(int, reference["target"]))
        try:
            expression, claim = _expression(response)
            value, used = evaluate(expression)
        except (NoAnswerError, ExpressionError) as error:
            return Verdict.malformed(str(error))
        except ZeroDivisionError:
            return Verdict.of(False, "divides by zero")
        problem = _misuse(used, numbers)
        if not problem and value != target:
            problem = f"makes {value}, not {target}"
        if not problem and claim and claim != str(target):
            problem = f"makes {value}, but claims {claim}"
        return Verdict.of(not problem, problem)


class ExpressionError(ValueError):
    """The text is no expression; the message says why."""


def evaluate(text: str) -> tuple[Fraction, list[int]]:
    """The exact value of an expression, and the numbers in it from left to right.

    Raises:
        ExpressionError: it can't be read, or exceeds the limits on length, depth or digits.
        ZeroDivisionError: it divides by zero.
    """
    if len(text) > MAX_CHARS:
        raise ExpressionError(f"the expression has {len(text)} characters, the limit is {MAX_CHARS}")
    tokens, end = [], 0
    while found := _TOKEN.match(text, end):
        tokens.append(found[1])
        end = found.end()
    if text[end:].strip():
        raise ExpressionError(f"can't read {text[end:].strip()[:20]!r}")
    parser = _Parser(tokens)
    value = parser.sum(0)
    if parser.tokens:
        raise ExpressionError(f"unexpected {parser.tokens[-1]!r}")
    return value, parser.used


class _Parser:
    """Recursive descent: sum = product {+- product}; product = atom {*/ atom}; atom = number | ( sum )."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens[::-1]
        self.used: list[int] = []

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while self.tokens and self.tokens[-1] in "+-":
            sign = self.tokens.pop()
            right = self.product(depth)
            value = value + right if sign == "+" else value - right
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while self.tokens and self.tokens[-1] in "*/":
            sign = self.tokens.pop()
            right = self.atom(depth)
            value = value * right if sign == "*" else value / right
        return value

    def atom(self, depth: int) -> Fraction:
        if not self.tokens:
            raise ExpressionError("the expression breaks off")
        token = self.tokens.pop()
        if token == "(":
            if depth == MAX_DEPTH:
                raise ExpressionError(f"parentheses nest deeper than {MAX_DEPTH}")
            value = self.sum(depth + 1)
            if not self.tokens or self.tokens.pop() != ")":
                raise ExpressionError("a parenthesis is never closed")
            return value
        if not token.isdecimal():
            raise ExpressionError(f"{token!r} where a number should be")
        if len(token) > MAX_DIGITS:
            raise ExpressionError(f"a number has {len(token)} digits, the limit is {MAX_DIGITS}")
        self.used.append(int(token))
        return Fraction(int(token))


def _expression(response: str) -> tuple[str, str]:
    """The expression in a response, and what it is claimed to equal ("" where nothing is)."""
    found = after_hashes(response)
    if found is None or "\\boxed" in found:
        found = last_boxed(response)
    if found is None:
        raise NoAnswerError("no final answer found")
    line = found.strip().partition("\n")[0][: 2 * MAX_CHARS]
    for symbol, plain in _SYNONYMS.items():
        line = line.replace(symbol, plain)
    expression, equals, claim = line.strip().removesuffix(".").partition("=")
    if equals and not re.fullmatch(r"\s*[0-9]{1,12}\s*", claim):
        raise ExpressionError(f"after '=' stands {claim.strip()[:20]!r}, not one number")
    return expression.strip(), str(int(claim)) if equals else ""


def _misuse(used: Iterable[int], given: Iterable[int]) -> str:
    """What is wrong with the use of the numbers, or ""."""
    have, want = Counter(used), Counter(given)
    for number in have:
        if number not in want:
            return f"uses {number}, which is not given"
        if have[number] > want[number]:
            return f"uses {number} {_times(have[number])}" + (
                f", given {_times(want[number])}" if want[number] > 1 else ""
            )
    for number in want:
        if have[number] < want[number]:
            return f"does not use {number}" + (f" {_times(want[number])}" if have[number] else "")
    return ""


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
