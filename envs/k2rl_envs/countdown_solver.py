"""Exact search for an expression of given numbers that makes a target."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache


@lru_cache(maxsize=4_096)
def solve(numbers: tuple[int, ...], target: int) -> str | None:
    """An expression that uses each number once and makes the target, exactly; None if there is none."""
    hand, goal = tuple(sorted(numbers)), Fraction(target)
    if len(hand) == 1:
        return reachable(hand).get(goal)
    for left, right in _splits(hand):
        others = reachable(right)
        for a, first in reachable(left).items():
            # What the other part must make, for each way to join the two.
            wanted = [(goal - a, "{0}+{1}"), (a - goal, "{0}-{1}"), (goal + a, "{1}-{0}")]
            if a:
                wanted += [(goal / a, "{0}*{1}"), (goal * a, "{1}/{0}")]
            if a and goal:
                wanted.append((a / goal, "{0}/{1}"))
            if not a and not goal:
                wanted.append((next(iter(others)), "{0}*{1}"))
            for b, form in wanted:
                if b in others:
                    return form.format(first, others[b])
    return None


@lru_cache(maxsize=1_000)
def reachable(numbers: tuple[int, ...]) -> dict[Fraction, str]:
    """Every value that all of the (sorted) numbers can make, with an expression for it."""
    if len(numbers) == 1:
        return {Fraction(numbers[0]): str(numbers[0])}
    found: dict[Fraction, str] = {}
    for left, right in _splits(numbers):
        for a, first in reachable(left).items():
            for b, second in reachable(right).items():
                found.setdefault(a + b, f"({first}+{second})")
                found.setdefault(a * b, f"({first}*{second})")
                found.setdefault(a - b, f"({first}-{second})")
                found.setdefault(b - a, f"({second}-{first})")
                if b:
                    found.setdefault(a / b, f"({first}/{second})")
                if a:
                    found.setdefault(b / a, f"({second}/{first})")
    return found


def _splits(numbers: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every way to cut the numbers into two parts, each once; both keep the order."""
    for mask in range(1, 1 << (len(numbers) - 1)):
        left = tuple(n for i, n in enumerate(numbers) if mask >> i & 1)
        yield left, tuple(n for i, n in enumerate(numbers) if not mask >> i & 1)
