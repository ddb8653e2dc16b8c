"""Every way in which what knights and knaves say can be true.

A statement is nested lists (or tuples): `["telling-truth", i]` person i is a knight, `["lying", i]` a knave,
`["not", s]`, `["and", s, …]`, `["or", s, …]`, `["->", s, t]` (if s then t), `["<=>", s, t]` (s if and only if t).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

Statement = Sequence[Any]


def solutions(statements: Sequence[Statement]) -> list[tuple[bool, ...]]:
    """Everyone's role, true for a knight, such that what a person says (`statements[i]` by person i) holds exactly if
    that person is a knight: all such assignments, found by trying every one."""
    return [
        roles
        for roles in product((True, False), repeat=len(statements))
        if all(holds(said, roles) == role for said, role in zip(statements, roles, strict=True))
    ]


def holds(statement: Statement, roles: Sequence[bool]) -> bool:
    """Whether a statement is true of these roles.

    Raises:
        ValueError: it is none of the forms above.
    """
    match list(statement):
        case ["telling-truth", int(person)]:
            return roles[person]
        case ["lying", int(person)]:
            return not roles[person]
        case ["not", inner]:
            return not holds(inner, roles)
        case ["and", *parts]:
            return all(holds(p, roles) for p in parts)
        case ["or", *parts]:
            return any(holds(p, roles) for p in parts)
        case ["->", premise, conclusion]:
            return not holds(premise, roles) or holds(conclusion, roles)
        case ["<=>", left, right]:
            return holds(left, roles) == holds(right, roles)
    raise ValueError(f"not a statement of knights and knaves: {statement!r}")
