"""Wrong versions of right answers to countdown puzzles, as a small model gets them wrong: the last attempt and the
expression are changed alike, so that only checking tells."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from k2rl.types import Status, Verdict

MOST_LONGER = 2
"""How many characters longer or shorter than the right answer a wrong one may be."""
LARGEST_SLIP = 10
"""How far a step's wrong result before the last may be from its right one."""
_FINAL = re.compile(r"####\s*([-+*/()\d ]*[)\d])\s*\Z")
_PADDED = re.compile(r"(?<!\d)0\d")
_STEP = re.compile(r"(?<!\d)\d+[-+*/]\d+=\d+(?!\d)")
_TOKEN = re.compile(r"(\d+|[-+*/])")
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}

Tree: TypeAlias = "int | tuple[str, Tree, Tree]"


def corruptions(
    reference: Mapping[str, Any], response: str, draw: np.random.Generator, verify: Callable[[str], Verdict]
) -> dict[str, str]:
    """Wrong versions of a right response, by what was done to it:

    off_target: the numbers are arranged otherwise, and make something else.
    slip: so they are, and a step is wrong so that they seem to make the target.
    wrong_number: numbers that are not given, which make the target where that can be.
    number_twice: one of the numbers in the place of another, making the target or something near it.
    """
    final = _FINAL.search(response)
    if final is None or _PADDED.search(final[1]) or verify(response).status is not Status.CORRECT:
        return {}
    answer = _Answer(response, final, int(reference["target"]))
    found: dict[str, str] = {}
    for kind, texts in {
        "off_target": answer.off_target(draw),
        "slip": answer.slipped(draw),
        "wrong_number": answer.wrong_numbers(draw),
        "number_twice": answer.number_twice(draw),
    }.items():
        for text in texts:
            if abs(len(text) - len(response)) <= MOST_LONGER and verify(text).status is Status.WRONG:
                found[kind] = text
                break
    return found


class _NotWholeError(ValueError):
    """A value on the way is no whole number of 0 or more."""


class _Answer:
    """A right response taken apart: what stands between the steps of its last attempt, and its expression."""

    def __init__(self, response: str, final: re.Match[str], target: int) -> None:
        self.target = target
        self.pieces = _TOKEN.split(final[1])
        self.numbers = [int(n) for n in self.pieces[1::2] if n.isdecimal()]
        self.signs = [s for s in self.pieces[1::2] if not s.isdecimal()]
        self.head, self.tail = response[: final.start(1)], response[final.end(1) :]
        self.tree = _parsed(final[1])
        shown = list(_STEP.finditer(self.head))[-len(self.signs) :]
        self.spans: list[tuple[int, int]] = []
        self.order: list[int] = []
        try:
            steps: list[str] = []
            _work(self.tree, steps)
        except _NotWholeError:
            return
        if sorted(steps) == sorted(match[0] for match in shown):
            self.spans = [match.span() for match in shown]
            free = list(range(len(steps)))
            for match in shown:
                self.order.append(next(i for i in free if steps[i] == match[0]))
                free.remove(self.order[-1])

    def off_target(self, draw: np.random.Generator) -> Iterator[str]:
        for numbers, signs in self._others(draw):
            yield self._written(numbers, signs)

    def slipped(self, draw: np.random.Generator) -> Iterator[str]:
        if not self.spans:
            return
        for numbers, signs in self._others(draw):
            tree = _parsed(self._expression(numbers, signs))
            places, steps = [*_places(tree)], []  # type: ignore[var-annotated]
            _work(tree, steps)
            at = int(draw.integers(len(places)))  # Anywhere, or at the end where no small slip leads to the target.
            wanted = _needed(tree, places[at], self.target)
            if wanted is not None and abs(wanted - int(steps[at].partition("=")[2])) <= LARGEST_SLIP:
                yield self._written(numbers, signs, (at, wanted))
            yield self._written(numbers, signs, (len(signs) - 1, self.target))

    def wrong_numbers(self, draw: np.random.Generator) -> Iterator[str]:
        paths = [*_leaves(self.tree)]
        missing = None
        for _ in range(12):
            i, j = (int(k) for k in draw.permutation(len(paths))[:2])
            numbers = list(self.numbers)
            numbers[i] = max(1, numbers[i] + (1, -1, 2, -2, 3, -3)[int(draw.integers(6))])
            if numbers[i] in self.numbers:
                continue
            if missing is None and self._value(numbers, self.signs) is not None:
                missing = self._written(numbers, self.signs)
            wanted = _needed(_parsed(self._expression(numbers, self.signs)), paths[j], self.target)
            if wanted is not None and 0 < wanted <= 2 * max(self.numbers):
                numbers[j] = wanted
                if self._value(numbers, self.signs) is not None:
                    yield self._written(numbers, self.signs)
        if missing:
            yield missing

    def number_twice(self, draw: np.random.Generator) -> Iterator[str]:
        if len(set(self.numbers)) == 1:
            return
        found: list[tuple[int, list[int], list[str]]] = []
        for _ in range(16):
            i, j = (int(k) for k in draw.permutation(len(self.numbers))[:2])
            numbers = list(self.numbers)
            numbers[i] = numbers[j]
            signs = self._other_signs(draw) if draw.random() < 0.7 else self.signs
            value = self._value(numbers, signs)
            if value is not None:
                found.append((abs(value - self.target), numbers, signs))
                if value == self.target:
                    break
        for _, numbers, signs in sorted(found, key=lambda entry: entry[0]):
            yield self._written(numbers, signs)

    def _others(self, draw: np.random.Generator) -> Iterator[tuple[list[int], list[str]]]:
        """Other arrangements of the numbers that miss the target, nearer ones earlier."""
        found: list[tuple[int, list[int], list[str]]] = []
        for _ in range(8):
            signs, numbers = self.signs, self.numbers
            way = draw.random()
            if way < 0.7:
                signs = self._other_signs(draw)
            if way > 0.4:
                numbers = [numbers[i] for i in draw.permutation(len(numbers)).tolist()]
            value = self._value(numbers, signs)
            if value is not None and value != self.target:
                found.append((abs(value - self.target), numbers, signs))
        return ((numbers, signs) for _, numbers, signs in sorted(found, key=lambda entry: entry[0]))

    def _other_signs(self, draw: np.random.Generator) -> list[str]:
        signs, at = list(self.signs), int(draw.integers(len(self.signs)))
        signs[at] = [s for s in "+-*/" if s != signs[at]][int(draw.integers(3))]
        return signs

    def _expression(self, numbers: Sequence[int], signs: Sequence[str]) -> str:
        some, others = iter(numbers), iter(signs)
        tokens = [str(next(some)) if old.isdecimal() else next(others) for old in self.pieces[1::2]]
        return "".join([x for pair in zip(self.pieces[::2], [*tokens, ""], strict=True) for x in pair])

    def _value(self, numbers: Sequence[int], signs: Sequence[str]) -> int | None:
        """What the numbers make; None where not all values on the way are whole and at least 0."""
        try:
            return _work(_parsed(self._expression(numbers, signs)), [])
        except _NotWholeError:
            return None

    def _written(self, numbers: Sequence[int], signs: Sequence[str], slip: tuple[int, int] | None = None) -> str:
        """The response with these numbers and signs; `slip`: which step has which wrong result."""
        expression = self._expression(numbers, signs)
        tree, steps, text, end = _parsed(expression), [], "", 0  # type: ignore[var-annotated]
        try:
            _work(tree, steps, slip)
        except _NotWholeError:
            return ""
        same = _shape(tree) == _shape(self.tree)
        for place, (start, stop) in enumerate(self.spans):
            text += self.head[end:start] + steps[self.order[place] if same else place]
            end = stop
        return text + self.head[end:] + expression + self.tail


def _parsed(expression: str) -> Tree:
    """The tree of an expression of numbers, signs and brackets."""

    def tree(node: ast.expr) -> Tree:
        if isinstance(node, ast.BinOp):
            return _SIGNS[type(node.op)], tree(node.left), tree(node.right)
        assert isinstance(node, ast.Constant)
        assert isinstance(node.value, int)
        return node.value

    return tree(ast.parse(expression.strip(), mode="eval").body)


def _work(tree: Tree, steps: list[str], slip: tuple[int, int] | None = None) -> int:
    """The value of a tree; its steps are appended, inner ones first."""
    if isinstance(tree, int):
        return tree
    sign, left, right = tree
    a, b = _work(left, steps, slip), _work(right, steps, slip)
    if (sign == "/" and (not b or a % b)) or (sign == "-" and a < b):
        raise _NotWholeError
    value = a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a // b
    if slip and slip[0] == len(steps):
        value = slip[1]
    steps.append(f"{a}{sign}{b}={value}")
    return value


def _needed(tree: Tree, path: Sequence[int], target: int) -> int | None:
    """What would have to stand at a place for the tree to make the target; None where no whole number would do."""
    for turn in path:
        assert not isinstance(tree, int)
        sign, left, right = tree
        try:
            other = _work(left if turn else right, [])
        except _NotWholeError:
            return None
        if sign == "+":
            target -= other
        elif sign == "-":
            target = other - target if turn else target + other
        else:
            up, down = (other, target) if sign == "/" and turn else (target, other)
            if sign == "/" and not turn:
                target *= other
            elif not down or up % down:
                return None
            else:
                target = up // down
        if target < 0:
            return None
        tree = right if turn else left
    return target


def _leaves(tree: Tree, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """The ways to the numbers, from left to right: 0 turns left."""
    if isinstance(tree, int):
        yield path
    else:
        yield from _leaves(tree[1], (*path, 0))
        yield from _leaves(tree[2], (*path, 1))


def _places(tree: Tree, path: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """The ways to the steps, inner ones first."""
    if not isinstance(tree, int):
        yield from _places(tree[1], (*path, 0))
        yield from _places(tree[2], (*path, 1))
        yield path


def _shape(tree: Tree) -> object:
    return 0 if isinstance(tree, int) else (_shape(tree[1]), _shape(tree[2]))
