"""Wrong versions of right answers to generated programming tasks, as a small model gets them wrong: the program differs
in a constant, an operation or the order of them, and its worked example follows it, or claims what it should, or shows
the right program.

Which program is wrong is known from the operations and the hidden cases; nothing is run in a sandbox. So only answers
written as the demonstrations are can be made worse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from k2rl_envs.programs import (
    FAMILIES,
    OPERATIONS,
    Cases,
    Operation,
    Program,
    Steps,
    expression,
    orders,
    passes,
    prose,
    trace,
    values,
)

MOST_LONGER = 3
"""How many characters longer or shorter than the right answer a wrong one may be."""
_ONE_LINE = re.compile(r"((?:#[^\n`]*\n)*def f\(x\): return )([^\n]*\S)\s*")
_EXPLAINED = re.compile(r"([^\n`]*\n```python\ndef f\(x\):\n)((?:    x = [^\n]+\n)+)    return x\n```\s*")
_BY_CODE = {(kind, operation.code): operation for (kind, _), operation in OPERATIONS.items()}
_FAMILY = {operation: family for families in FAMILIES.values() for family in families for operation in family}


def corruptions(reference: Mapping[str, Any], response: str, draw: np.random.Generator) -> dict[str, str]:
    """Wrong versions of a right response to a generated task, by what was done to its program: `other_constant`,
    `other_operation`, `other_order`."""
    program = Program.from_json(reference["program"])
    cases: Cases = tuple((arguments[0], expected) for arguments, expected in reference["cases"])
    written = _ONE_LINE.fullmatch(response) or _EXPLAINED.fullmatch(response)
    steps = _steps(program, written) if written else None
    if written is None or steps is None or not passes(steps, cases):
        return {}
    found: dict[str, str] = {}
    for kind, some in {
        "other_constant": _others(steps, draw, same_family=True),
        "other_operation": _others(steps, draw, same_family=False),
        "other_order": (order for order in orders(steps, steps[0].takes) if order != steps),
    }.items():
        for wrong in some:
            if not passes(wrong, cases):
                text = _rewritten(written, program, steps, wrong, draw)
                if text and abs(len(text) - len(response)) <= MOST_LONGER:
                    found[kind] = text
                    break
    return found


def _steps(program: Program, written: re.Match[str]) -> Steps | None:
    """The operations of a program as it is written; None where they can't be told."""
    kind, body = program.steps[0].takes, written[2]
    if written.re is _ONE_LINE:
        return next((order for order in orders(program.told, kind) if expression(order) == body), None)
    steps: list[Operation] = []
    for line in body.splitlines():
        step = _BY_CODE.get((kind, line.removeprefix("    x = ")))
        if step is None:
            return None
        steps.append(step)
        kind = step.gives
    return tuple(steps)


def _others(steps: Steps, draw: np.random.Generator, same_family: bool) -> Iterator[Steps]:
    """The steps with another operation in the place of one, with another constant or of another kind."""
    for at in draw.permutation(len(steps)).tolist():
        step = steps[at]
        options: Sequence[Operation] = [
            other
            for family in FAMILIES[step.takes]
            if (family is _FAMILY[step]) == same_family
            for other in family
            if other is not step and other.gives == step.gives
        ]
        for i in draw.permutation(len(options)).tolist():
            yield (*steps[:at], options[i], *steps[at + 1 :])


def _rewritten(
    written: re.Match[str], program: Program, steps: Steps, wrong: Steps, draw: np.random.Generator
) -> str | None:
    """The response with the wrong program. Its worked example is kept, or worked out anew, truly or so that it ends in
    what it should; None where it can't be worked out."""
    tell = trace if written.re is _ONE_LINE else prose
    head, tail = written[1], written.string[written.end(2) :]
    way = draw.random()
    if way > 0.25:
        try:
            found = values(wrong, program.shown)
        except ValueError:
            return None
        if way > 0.65:
            found[-1] = program.result
        before, old, after = head.rpartition(tell(steps, values(steps, program.shown)))
        if old:
            head = before + tell(wrong, found) + after
    if written.re is _ONE_LINE:
        return head + expression(wrong) + tail
    return head + "".join(f"    x = {step.code}\n" for step in wrong) + tail
