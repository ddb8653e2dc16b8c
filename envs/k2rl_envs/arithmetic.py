"""Generated arithmetic and algebra of adjustable difficulty, with worked solutions.

Levels add one step of work each:

    1  48+27                     one sum or difference
    2  14*7+58        7*x=91     a product and a sum; one division
    3  14*7+8*16      7*x+12=61  two products; two steps of algebra
    4  14*7+8*16-41   9*x+12=4*x+47
    5  14*7+8*16-6*3  3*(5*x+7)=141
    6  14*7+8*16-6*3+9*12  3*(5*x+7)=2*x+86
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from k2rl import rng
from k2rl.types import Split

LEVELS = (1, 2, 3, 4, 5, 6)


@dataclass(frozen=True)
class Problem:
    """A question, its integer answer, and the steps that lead there (`"34*7=238"`, …)."""

    question: str
    answer: int
    steps: tuple[str, ...]


def problems(level: int, split: Split, seed: int) -> Iterator[Problem]:
    """An endless stream of problems of one level; train and test never share a question."""
    draw = rng.generator("arithmetic", level, split, seed)
    while True:
        problem = _GENERATORS[level][int(draw.integers(len(_GENERATORS[level])))](draw)
        if rng.in_test_split("arithmetic", problem.question) == (split == "test"):
            yield problem


def _number(draw: np.random.Generator, low: int, high: int) -> int:
    return int(draw.integers(low, high + 1))


def _sum(draw: np.random.Generator) -> Problem:
    a, b = _number(draw, 3, 60), _number(draw, 3, 60)
    if draw.random() < 0.5:
        return _arithmetic(f"{a}+{b}", [f"{a}+{b}={a + b}"], a + b)
    a, b = max(a, b), min(a, b)
    return _arithmetic(f"{a}-{b}", [f"{a}-{b}={a - b}"], a - b)


def _products(draw: np.random.Generator, count: int, tail: bool) -> Problem:
    """`count` products of a two-digit and a one-digit number, joined by + and -, and perhaps a plain number."""
    text, steps, total = "", [], 0
    values: list[tuple[str, int]] = []
    for _ in range(count):
        a, b = _number(draw, 2, 19), _number(draw, 2, 9)
        left, right = (a, b) if draw.random() < 0.5 else (b, a)
        values.append((f"{left}*{right}", a * b))
    if tail:
        c = _number(draw, 3, 60)
        values.append((str(c), c))
    for term, value in values:
        if "*" in term:
            steps.append(f"{term}={value}")
    for i, (term, value) in enumerate(values):
        minus = i > 0 and total >= value and draw.random() < 0.5
        if i > 0:
            result = total - value if minus else total + value
            steps.append(f"{total}{'-' if minus else '+'}{value}={result}")
            text += "-" if minus else "+"
            total = result
        else:
            total = value
        text += term
    return _arithmetic(text, steps, total)


def _arithmetic(expression: str, steps: list[str], answer: int) -> Problem:
    return Problem(f"Compute {expression}", answer, tuple(steps))


def _divide(draw: np.random.Generator) -> Problem:
    a, x = _number(draw, 2, 9), _number(draw, 2, 20)
    return Problem(f"Solve {a}*x={a * x}", x, (f"{a * x}/{a}={x}",))


def _linear(draw: np.random.Generator) -> Problem:
    a, x, b = _number(draw, 2, 9), _number(draw, 2, 20), _number(draw, 3, 60)
    right = a * x + b
    return Problem(f"Solve {a}*x+{b}={right}", x, (f"{right}-{b}={a * x}", f"{a * x}/{a}={x}"))


def _two_sided(draw: np.random.Generator) -> Problem:
    c, d, x, b = _number(draw, 2, 6), _number(draw, 2, 6), _number(draw, 2, 20), _number(draw, 3, 60)
    a, e = c + d, d * x + b
    return Problem(f"Solve {a}*x+{b}={c}*x+{e}", x, (f"{a}-{c}={d}", f"{e}-{b}={d * x}", f"{d * x}/{d}={x}"))


def _nested(draw: np.random.Generator) -> Problem:
    k, a, x, b = _number(draw, 2, 6), _number(draw, 2, 6), _number(draw, 2, 15), _number(draw, 3, 40)
    inner = a * x + b
    return Problem(
        f"Solve {k}*({a}*x+{b})={k * inner}",
        x,
        (f"{k * inner}/{k}={inner}", f"{inner}-{b}={a * x}", f"{a * x}/{a}={x}"),
    )


def _nested_two_sided(draw: np.random.Generator) -> Problem:
    k, a, c = _number(draw, 2, 5), _number(draw, 2, 5), _number(draw, 2, 9)
    x, b = _number(draw, 2, 15), _number(draw, 3, 20)
    c = min(c, k * a - 1)
    d = k * a - c
    e = d * x + k * b
    steps = (f"{k}*{a}={k * a}", f"{k}*{b}={k * b}", f"{k * a}-{c}={d}", f"{e}-{k * b}={d * x}", f"{d * x}/{d}={x}")
    return Problem(f"Solve {k}*({a}*x+{b})={c}*x+{e}", x, steps)


_GENERATORS: dict[int, tuple[Callable[[np.random.Generator], Problem], ...]] = {
    1: (_sum,),
    2: (lambda d: _products(d, 1, tail=True), _divide),
    3: (lambda d: _products(d, 2, tail=False), _linear),
    4: (lambda d: _products(d, 2, tail=True), _two_sided),
    5: (lambda d: _products(d, 3, tail=False), _nested),
    6: (lambda d: _products(d, 4, tail=False), _nested_two_sided),
}
