"""The two ways a run can end badly, told apart by whose turn it is to act."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """The user's input is wrong. One line: what, the allowed values, the fix. Exit code 2, no traceback."""


class RunError(RuntimeError):
    """The run itself failed for a named reason (disk full, too many grader failures). Exit code 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
