"""What the environments of this package have in common in their arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from k2rl.errors import UserError, did_you_mean


def with_instruction(question: str, instruction: str) -> str:
    return f"{question}\n{instruction}" if instruction else question


def refuse(chosen: str, **arguments: object) -> None:
    """Raise `UserError` for an argument that is set but has no effect in the chosen set-up."""
    for name, value in arguments.items():
        if value is not None:
            raise UserError(f"{name} has no effect with {chosen}: remove it, got {value!r}")


def style_shares(given: Mapping[str, float] | None, styles: Sequence[str]) -> list[float]:
    """The share of each of `styles`, summing to 1; by default the first has all.

    Raises:
        UserError: an unknown style, a share that is no number of 0 or more, or no share above 0.
    """
    given = {styles[0]: 1.0} if given is None else given
    for style, share in given.items():
        if style not in styles:
            raise UserError(f"unknown style {style!r}{did_you_mean(style, styles)}: allowed are {', '.join(styles)}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
            raise UserError(f"the share of style {style} must be 0 or more, got {share!r}")
    total = math.fsum(given.values())
    if not total:
        raise UserError("the shares of all styles are 0")
    return [given.get(style, 0.0) / total for style in styles]
