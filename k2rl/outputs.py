"""The files a command writes: refused before the work if they can't be written, whole or not there after it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from k2rl.errors import UserError


def check(option: str, path: Path, taken: Mapping[str, Path]) -> None:
    """Refuse, before the work, a file that can't be written after it, or that would overwrite another option's.

    Raises:
        UserError: it is a folder, lies in none that exists and is writable, or is the file of an option in `taken`.
    """
    for other, file in taken.items():
        if path.resolve() == file.resolve():
            raise UserError(f"{option} {path} is the file of {other}: give another")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{option} {path}: give a file in a folder that exists and is writable")


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """A report, as `write`."""
    write(path, (json.dumps(report, indent=2) + "\n").encode())


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One row a line, as `write`."""
    write(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def write(path: Path, content: bytes) -> None:
    """Written beside its place and renamed.

    Raises:
        UserError: it can't be.
    """
    draft = path.with_name(f".draft-{path.name}")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(f"can't write {path}: {error.strerror}") from None
