"""Texts of others on a terminal: shown as what they are, never obeyed by it."""

from __future__ import annotations


def shown(text: str, most: int | None = None) -> str:
    """One line without control characters: what can't be printed (line breaks, escape codes, characters that turn the
    direction of writing, lone surrogates) is written as its escape. Of more than `most` characters the middle is left
    out."""
    if most is None or len(text) <= most:
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    head, tail = text[: most // 2], text[len(text) - most + most // 2 :]
    return f"{shown(head)} … ({len(text) - most:,} more) … {shown(tail)}"


def shown_lines(text: str) -> str:
    """The same of a text with its lines and tabs."""
    return "".join(c if c in "\n\t" else shown(c) for c in text)
