"""The two ways a run can end badly, told apart by whose turn it is to act."""

from __future__ import annotations

import difflib
import os
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """The user's input is wrong. One line: what, the allowed values, the fix. Exit code 2, no traceback."""


class UnavailableError(UserError):
    """Raised by an environment's constructor or `setup()`: this machine can't run it (no jail, no data, no display).

    A run leaves such an environment out where its recipe says `optional: true`, and refuses to start elsewhere.
    """


class RunError(RuntimeError):
    """The run itself failed for a named reason (disk full, too many grader failures). Exit code 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


@contextmanager
def users_code(what: str) -> Iterator[None]:
    """Around a call into a plug-in that must not fail: what it raises is its author's to repair.

    Raises:
        UserError: the plug-in's own, or one line with `what` failed, the exception, and the place in its code.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise failed(what, error) from error


def failed(what: str, error: Exception) -> UserError:
    """One line for whatever a plug-in raises, with the place in its code."""
    frame = own_frame(error)
    at = "" if isinstance(error, SyntaxError) else f" ({frame.filename}:{frame.lineno})"
    first_line = (str(error).splitlines() or [""])[0]
    return UserError(f"{what} failed: {type(error).__name__}: {first_line}{at}")


def own_frame(error: BaseException) -> traceback.FrameSummary:
    """Where a caught error was raised: the innermost frame outside of libraries and k2rl, or the innermost of all."""
    frames = traceback.extract_tb(error.__traceback__)
    return ([f for f in frames if not foreign(f.filename)] or frames)[-1]


def foreign(filename: str) -> bool:
    """Whether a source file belongs to Python, to an installed library or to k2rl: not where its user would look."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    return filename.startswith((*libraries, str(Path(__file__).parent) + os.sep, "<frozen"))
