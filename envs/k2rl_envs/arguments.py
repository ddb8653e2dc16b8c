"""What the environments of this package have in common in their arguments."""

from __future__ import annotations

from k2rl.errors import UserError


def with_instruction(question: str, instruction: str) -> str:
    return f"{question}\n{instruction}" if instruction else question


def refuse(chosen: str, **arguments: object) -> None:
    """Raise `UserError` for an argument that is set but has no effect in the chosen set-up."""
    for name, value in arguments.items():
        if value is not None:
            raise UserError(f"{name} has no effect with {chosen}: remove it, got {value!r}")
