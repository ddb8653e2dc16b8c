"""Texts of others on a terminal: shown as what they are, never obeyed by it."""

from __future__ import annotations


def shown(text: str, most: int | None = None) -> str:
    """One line without control characters: what can't be printed (line breaks, escape codes, characters that turn the
    direction of writing, lone surrogates) is written as its escape. At most `most` characters of `text`, and how many
    more there are."""
    head = text if most is None else text[:most]
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in head)
    return line if len(head) == len(text) else f"{line}… ({len(text) - len(head):,} more)"
