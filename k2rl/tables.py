"""A file of rows as `k2rl data` takes it in and writes it out: whole rows, every column kept.

Only the prompt is looked for, by the schemas of `schemas.py` or the column that the user names. Outputs are written
beside their place and renamed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k2rl import schemas
from k2rl.errors import UserError
from k2rl.records import KINDS, is_hub, records
from k2rl.rows import Row, mapping, row_of
from k2rl.schemas import Schema


@dataclass(frozen=True)
class Table:
    """The rows of a file as they are, their places, and how they are read."""

    source: str
    places: list[str]
    records: list[Mapping[str, Any]]
    schema: Schema | None

    def rows(self) -> list[Row]:
        """The rows under our names.

        Raises:
            UserError: nobody knows which column is the prompt, or a row lacks a column.
        """
        if self.schema is None:
            columns = list(dict.fromkeys(name for record in self.records for name in record))
            raise UserError(
                f"{self.source}: which column is the prompt? Give --prompt COLUMN; it has {', '.join(columns)}"
            )
        return [
            row_of(place, record, self.schema.fields, self.schema.optional)
            for place, record in zip(self.places, self.records, strict=True)
        ]


def read(source: str, prompt: str | None = None) -> Table:
    """A file's rows; `prompt` names the column (or `a+b`) of their prompts, where no schema is to be taken.

    Raises:
        UserError: as `records`, a row that is no object.
    """
    found = [(place, mapping(place, record)) for place, record in records(source)]
    schema = Schema("given", {"prompt": prompt}) if prompt else next(iter(fitting(source).values()), None)
    return Table(source, [place for place, _ in found], [record for _, record in found], schema)


def fitting(source: str) -> dict[str, Schema]:
    """Per kind of task, the schema that a file has, if any."""
    row = schemas.first_values(source)
    first = {kind: next((s for s in schemas.known(kind) if s.fits(row)), None) for kind in schemas.kinds()}
    return {kind: schema for kind, schema in first.items() if schema is not None}


def short(place: str) -> str:
    """A place without its file: `line 3`."""
    return place.rpartition(", ")[2]


def check_output(out: Path, *inputs: str | Path, force: bool = False) -> None:
    """Raise `UserError` for an output that can't be written, or would replace an input or (without `force`) a file."""
    if out.suffix not in KINDS:
        raise UserError(f"--out {out}: can't write {out.suffix or 'a file without suffix'}: use {', '.join(KINDS)}")
    if not out.parent.is_dir() or out.is_dir():
        raise UserError(f"--out {out}: give a file in a folder that exists")
    for given in inputs:
        if not is_hub(given) and Path(given).expanduser().resolve() == out.resolve():
            raise UserError(f"--out {out} is an input: inputs are never overwritten")
    if out.exists() and not force:
        raise UserError(f"--out {out} exists: choose another, or add --force")


def write(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Write rows in the format of the file's name, whole or not at all."""
    draft = out.with_name(f".draft-{out.name}")
    if out.suffix == ".parquet":
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            raise UserError(f'writing {out} needs pyarrow: pip install "k2rl[parquet]"') from None
        try:
            parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), draft)
        except pyarrow.ArrowException as error:
            raise UserError(f"{out}: these rows make no parquet table: {str(error).splitlines()[0]}") from None
    else:
        lines = [_json(row) for row in rows]
        text = "\n".join(lines) + "\n" if out.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]\n"
        draft.write_text(text, encoding="utf-8")
    os.replace(draft, out)


def _json(row: Mapping[str, Any]) -> str:
    """A row as a line; dates and the like of a parquet file become text."""
    line = json.dumps(row, ensure_ascii=False, default=str)
    has_lone_surrogates = any("\ud800" <= c <= "\udfff" for c in line)
    return json.dumps(row, default=str) if has_lone_surrogates else line
