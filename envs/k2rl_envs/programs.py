"""Generated program synthesis: a short specification and an example, to be answered with a small Python function.

Levels:

    1  one operation                                   Write f: add 3. f(4)=7
    2  two operations, one after the other             Write f: double, then add 3. f(4)=11
    3  two operations whose order the example decides  Write f: in some order double, add 3. f(4)=14
    4  three operations whose order it decides         Write f: in some order add 3, double, square. f(1)=64

Programs work on numbers, texts and lists. The hidden cases tell the right program from every one that differs from it
in a single operation (replaced by any other of the table, or left out) or in the order of its operations; a task whose
cases can't do so is not given. Tasks are split by their operations regardless of order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations
from typing import Any, Literal

from k2rl import rng
from k2rl.types import Split

LEVELS = {1: 1, 2: 2, 3: 2, 4: 3}
"""Level -> number of operations."""
Kind = Literal["number", "text", "list"]
KINDS: tuple[Kind, ...] = ("number", "text", "list")
STYLES = ("checked", "direct", "explained")
_SIZES = (7, 6, 5, 4, 3, 2)
"""Lengths of the hidden cases' texts and lists."""
_LARGEST = 99
"""The largest number in the worked example, over all orders of the operations; none is negative."""


@dataclass(frozen=True, eq=False)
class Operation:
    """A step of a program: its words, its Python expression in `x`, what it takes and what it gives. There is one
    object of each, in the table below."""

    words: str
    code: str
    takes: Kind
    gives: Kind
    run: Callable[[Any], Any]


Steps = tuple[Operation, ...]
Cases = tuple[tuple[Any, Any], ...]
"""Pairs of an argument and the value it should give."""


@dataclass(frozen=True)
class Program:
    """A task: the operations as they are applied and as they are told, whether the telling gives the order, the shown
    example's argument, and the hidden cases."""

    steps: Steps
    told: Steps
    ordered: bool
    shown: Any
    cases: Cases = ()

    def to_json(self) -> dict[str, Any]:
        """The task without its cases."""
        return {
            "takes": self.steps[0].takes,
            "steps": [step.words for step in self.steps],
            "told": [self.steps.index(step) for step in self.told],
            "ordered": self.ordered,
            "shown": self.shown,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Program:
        """What `to_json` gave."""
        steps: list[Operation] = []
        for words in data["steps"]:
            steps.append(OPERATIONS[steps[-1].gives if steps else data["takes"], words])
        return cls(tuple(steps), tuple(steps[i] for i in data["told"]), data["ordered"], data["shown"])

    @property
    def result(self) -> Any:
        """What the shown example gives."""
        return run(self.steps, self.shown)

    @property
    def specification(self) -> str:
        """What the prompt says."""
        words = [step.words for step in self.told]
        wish = ", then ".join(words) if self.ordered else "in some order " + ", ".join(words)
        return f"Write f: {wish}. f({show(self.shown)})={show(self.result)}"


def programs(level: int, split: Split, seed: int) -> Iterator[Program]:
    """An endless stream of tasks of one level; train and test never share a set of operations."""
    draw = rng.generator("programs", level, split, seed)
    while True:
        uniform = iter(draw.random(48).tolist())
        steps = _draw_steps(LEVELS[level], uniform)
        if len(set(steps)) == len(steps) and _in_test(steps) == (split == "test"):
            program = _program(steps, level < 3, uniform)
            if program is not None:
                yield program


def run(steps: Steps, value: Any) -> Any:
    """What the steps make of a value; None where nothing (the largest number of an empty list)."""
    try:
        for step in steps:
            value = step.run(value)
    except ValueError:
        return None
    return value


def passes(steps: Steps, cases: Cases) -> bool:
    """Whether the steps give every case's value."""
    try:
        for value, expected in cases:  # Plain loops: task generation spends its time here.
            for step in steps:
                value = step.run(value)
            if value != expected:
                return False
    except ValueError:
        return False
    return True


@lru_cache(maxsize=1 << 16)
def orders(told: Steps, takes: Kind) -> tuple[Steps, ...]:
    """The orders in which the operations can be applied to an argument of this kind."""
    return tuple(
        order
        for order in permutations(told)
        if order[0].takes == takes and all(a.gives == b.takes for a, b in pairwise(order))
    )


def show(value: Any) -> str:
    """A value as Python text without spaces."""
    return repr(value).replace(" ", "")


def expression(steps: Steps) -> str:
    """The steps as one expression in `x`."""
    text = "x"
    for step in steps:
        bare = not _compound(text) or re.search(r"\(x[,)]|in x", step.code)
        inner = text if bare else f"({text})"
        text = re.sub(r"\bx\b", lambda _, inner=inner: inner, step.code)  # type: ignore[misc]
    return text


def _compound(text: str) -> bool:
    """Whether an expression has an operator outside brackets."""
    depth = 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if depth == 0 and character in "+-*/%":
            return True
    return False


def demonstration(program: Program, style: str, key: str, most_misses: int = 2) -> str:
    """A right answer in one of `STYLES`:

    direct: the function alone.
    checked: orders of the operations followed on the example, in comments, up to `most_misses` that miss and then one
        that fits; then the function.
    explained: every step in a sentence, then the function in a fence.

    `key` decides which orders are tried first, so that the text is the same everywhere.
    """
    function = f"def f(x): return {expression(program.steps)}"
    if style == "direct":
        return function
    if style == "checked":
        meanings = [program.steps] if program.ordered else [*orders(program.told, program.steps[0].takes)]
        rng.generator("program-demonstration", key).shuffle(meanings)
        misses = [m for m in meanings if run(m, program.shown) != program.result]
        before = meanings.index(program.steps)
        shown = [m for m in meanings[:before] if m in misses][:most_misses]
        lines = [f"# {trace(m, values(m, program.shown))} no" for m in shown]
        lines.append(f"# {trace(program.steps, values(program.steps, program.shown))} yes")
        return "\n".join([*lines, function])
    start = f"Let us start with {show(program.shown)}."
    lines = ["def f(x):", *(f"    x = {step.code}" for step in program.steps), "    return x"]
    return "\n".join(
        [f"{start} {prose(program.steps, values(program.steps, program.shown))}", "```python", *lines, "```"]
    )


def values(steps: Steps, value: Any) -> list[Any]:
    """The value after each step. Raises `ValueError` where there is none (the largest number of an empty list)."""
    return [value := step.run(value) for step in steps]


def trace(steps: Steps, found: Sequence[Any]) -> str:
    """`x*2=8 x+3=11`: the value after each step."""
    return " ".join(f"{step.code}={show(value)}" for step, value in zip(steps, found, strict=True))


def prose(steps: Steps, found: Sequence[Any]) -> str:
    """The same in sentences."""
    told = [f"{step.words}, which makes it {show(value)}." for step, value in zip(steps, found, strict=True)]
    return "First " + " Then ".join(told)


def _draw_steps(count: int, uniform: Iterator[float]) -> Steps:
    """Operations that fit one after the other; every family of a kind is equally likely."""
    kind: Kind = _pick(KINDS, uniform)
    steps: list[Operation] = []
    while len(steps) < count:
        steps.append(_pick(_pick(FAMILIES[kind], uniform), uniform))
        kind = steps[-1].gives
    return tuple(steps)


def _program(steps: Steps, ordered: bool, uniform: Iterator[float]) -> Program | None:
    """A task with these steps and a drawn example; None where the example or the cases don't single the steps out."""
    meanings = (steps,) if ordered else orders(steps, steps[0].takes)
    shown = _argument(steps[0].takes, 3, uniform)
    results = [_followed(meaning, shown) for meaning in meanings]
    result = _followed(steps, shown)
    refuted = [meaning for meaning, other in zip(meanings, results, strict=True) if other != result]
    if result is None or None in results or bool(refuted) == ordered:
        return None
    cases = _cases(steps)
    if cases is None or any(argument == shown for argument, _ in cases):
        return None
    if refuted != [meaning for meaning in meanings if not passes(meaning, cases)]:
        return None  # An order that fits the example fails a case, or one that does not passes them all.
    told = steps if ordered else tuple(sorted(steps, key=lambda _: next(uniform)))
    return Program(steps, told, ordered, shown, cases)


@lru_cache(maxsize=1 << 16)
def _in_test(steps: Steps) -> bool:
    return rng.in_test_split("programs", steps[0].takes, *sorted(step.words for step in steps))


@lru_cache(maxsize=1 << 16)
def _cases(steps: Steps) -> Cases | None:
    """Hidden cases that no steps pass that differ in a single operation; None where two draws find none."""
    draw = rng.generator("program-cases", *(step.words for step in steps))
    for _ in range(2):
        uniform = iter(draw.random(sum(_SIZES)).tolist())
        arguments = [_argument(steps[0].takes, size, uniform) for size in _SIZES]
        cases = tuple([(argument, run(steps, argument)) for argument in arguments])
        distinct = len({show(argument) for argument in arguments}) == len(arguments)
        if distinct and all([value is not None for _, value in cases]) and not _loose(steps, cases):
            return cases
    return None


def _loose(steps: Steps, cases: Cases) -> bool:
    """Whether another operation in the place of one, or none, passes the cases too."""
    before = cases
    for i, step in enumerate(steps):
        rest = steps[i + 1 :]
        for other in _ALTERNATIVES[step.takes, step.gives]:
            if other is not step and passes((other, *rest), before):
                return True
        before = tuple([(step.run(value), expected) for value, expected in before])
    return False


def _followed(steps: Steps, value: Any) -> Any:
    """What the steps make of a value, where they can be followed by hand: short values, numbers from 0 to `_LARGEST`;
    else None."""
    try:
        for step in steps:
            value = step.run(value)
            if isinstance(value, int):
                if not 0 <= value <= _LARGEST:
                    return None
            elif len(value) > 6:
                return None
    except ValueError:
        return None
    return value


def _argument(kind: Kind, size: int, uniform: Iterator[float]) -> Any:
    """An argument of a kind; the example's has size 3, and is small."""
    if kind == "number":
        return int(next(uniform) * 9) + 1 if size == 3 else int(next(uniform) * 50) - 9
    digits = [int(next(uniform) * (5 if kind == "text" else 10 if size == 3 else 16)) for _ in range(size)]
    return "".join(map(str, digits)) if kind == "text" else digits


def _pick(options: Sequence[Any], uniform: Iterator[float]) -> Any:
    return options[int(next(uniform) * len(options))]


def _family(takes: Kind, gives: Kind, words: str, code: str, constants: Sequence[object] = ("",)) -> list[Operation]:
    """Operations that differ in a constant, `#` in their words and code."""
    return [
        Operation(
            words.replace("#", str(c)),
            code.replace("#", str(c)),
            takes,
            gives,
            eval("lambda x: " + code.replace("#", str(c))),  # The table's own text.
        )
        for c in constants
    ]


FAMILIES: dict[Kind, list[list[Operation]]] = {
    "number": [
        _family("number", "number", "add #", "x+#", range(1, 10)),
        _family("number", "number", "subtract #", "x-#", range(1, 10)),
        _family("number", "number", "double", "x*2"),
        _family("number", "number", "times #", "x*#", range(3, 6)),
        _family("number", "number", "square", "x**2"),
        _family("number", "number", "halve", "x//2"),
        _family("number", "number", "at least #", "max(x,#)", range(3, 13)),
        _family("number", "number", "at most #", "min(x,#)", range(3, 13)),
    ],
    "text": [
        _family("text", "text", "reverse", "x[::-1]"),
        _family("text", "text", "repeat", "x*2"),
        _family("text", "text", "first #", "x[:#]", (1, 2, 3)),
        _family("text", "text", "last #", "x[-#:]", (1, 2, 3)),
        _family("text", "text", "skip #", "x[#:]", (1, 2)),
        _family("text", "text", "append #", "x+'#'", range(5)),
        _family("text", "text", "prepend #", "'#'+x", range(5)),
        _family("text", "text", "remove #", "x.replace('#','')", range(5)),
        _family("text", "number", "length", "len(x)"),
        _family("text", "number", "count #", "x.count('#')", range(5)),
    ],
    "list": [
        _family("list", "list", "reverse", "x[::-1]"),
        _family("list", "list", "sort", "sorted(x)"),
        _family("list", "list", "repeat", "x*2"),
        _family("list", "list", "first #", "x[:#]", (1, 2, 3)),
        _family("list", "list", "last #", "x[-#:]", (1, 2, 3)),
        _family("list", "list", "skip #", "x[#:]", (1, 2)),
        _family("list", "list", "append #", "x+[#]", range(10)),
        _family("list", "list", "add # to each", "[i+# for i in x]", range(1, 10)),
        _family("list", "list", "keep over #", "[i for i in x if i>#]", range(2, 8)),
        _family("list", "number", "sum", "sum(x)"),
        _family("list", "number", "largest", "max(x)"),
        _family("list", "number", "smallest", "min(x)"),
        _family("list", "number", "length", "len(x)"),
    ],
}
# What may stand in the place of an operation; nothing at all comes first, for it is what most often passes.
_ALTERNATIVES: dict[tuple[Kind, Kind], list[Operation]] = {
    (takes, gives): [
        *([Operation("nothing", "x", takes, gives, lambda x: x)] if takes == gives else []),
        *(o for family in FAMILIES[takes] for o in family if o.gives == gives),
    ]
    for takes in KINDS
    for gives in KINDS
}
OPERATIONS = {(kind, o.words): o for kind in KINDS for family in FAMILIES[kind] for o in family}
