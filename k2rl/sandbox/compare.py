"""Whether a program printed what it should."""

from __future__ import annotations


def same_output(printed: bytes, expected: bytes) -> bool:
    """By the rules of programming contests: blanks at the ends of lines and empty lines at the end do not count."""
    return _lines(printed) == _lines(expected)


def _lines(data: bytes) -> list[bytes]:
    return [line.rstrip() for line in data.rstrip().split(b"\n")]
