"""Which column of a file holds what: the known schemas of `_assets/schemas.yaml`, told apart by columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import yaml

from k2rl import assets, rows
from k2rl.errors import UserError, did_you_mean
from k2rl.records import records
from k2rl.rows import Row, holds, mapping
from k2rl.types import Split, Task

_LOOKED_AT = 100
"""Rows from which the columns of a file are told."""


@dataclass(frozen=True)
class Schema:
    """A field map: our name -> their column, some of the fields `optional`."""

    name: str
    fields: Mapping[str, str]
    optional: frozenset[str] = frozenset()

    @property
    def required(self) -> dict[str, str]:
        return {field: column for field, column in self.fields.items() if field not in self.optional}

    def fits(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has every column that is not optional."""
        return all(holds(row, column) for column in self.required.values())

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(self.required.values())}"


@lru_cache
def known(kind: str) -> tuple[Schema, ...]:
    """The known schemas of a kind of task (`math`, `code`, `knights`), the most particular first."""
    data = yaml.safe_load(assets.SCHEMAS.read_text("utf-8"))[kind]
    return tuple(
        Schema(
            name,
            {field.rstrip("?"): column for field, column in fields.items()},
            frozenset(field[:-1] for field in fields if field.endswith("?")),
        )
        for name, fields in data.items()
    )


@runtime_checkable
class ReadsRows(Protocol):
    """What an environment needs for `k2rl data check` and `tag`: the kind of its schemas, and a task of each row."""

    row_kind: str

    def row_task(self, row: Row) -> Task: ...


def kinds() -> list[str]:
    """The kinds of tasks that schemas are known of, the most particular first."""
    return list(yaml.safe_load(assets.SCHEMAS.read_text("utf-8")))


def detect(kind: str, source: str | Path, given: Mapping[str, str] | None = None, name: str | None = None) -> Schema:
    """The schema of a file: the one of this name, or the first that its columns fit, with the user's columns in it.

    Raises:
        UserError: an unknown schema or field, a file that can't be read, or one that no schema fits.
    """
    schemas = _with_columns(kind, given or {}, name)
    if name is not None:
        return schemas[0]
    row = first_values(source)
    for schema in schemas:
        if schema.fits(row):
            return schema
    for field, column in (given or {}).items():
        if not holds(row, column):
            raise UserError(
                f"{source} has no column {column!r}, named by fields.{field}{did_you_mean(column, row)}: it has "
                f"{', '.join(sorted(row))}"
            )
    raise UserError(
        f"{source} has the columns {', '.join(sorted(row)) or '(none)'}, which is no known format "
        f"({'; '.join(map(str, known(kind)))}): set fields"
    )


def load_splits(
    kind: str,
    data: str | Path,
    test_data: str | Path | None,
    given: Mapping[str, str] | None,
    test_share: float = rows.TEST_SHARE,
    *,
    name: str | None = None,
    same: Callable[[Row], object] | None = None,
) -> dict[Split, list[Row]]:
    """`rows.load_splits` with the schema of each file. Raises `UserError` as that and `detect`."""
    schema = detect(kind, data, given, name)
    test = schema if test_data is None else detect(kind, test_data, given, name)
    return rows.load_splits(
        data, test_data, schema.fields, test_share, schema.optional, same=same, test_fields=test.fields
    )


def _with_columns(kind: str, given: Mapping[str, str], name: str | None) -> list[Schema]:
    """The schemas that have the fields of the user's columns, with these columns."""
    schemas = known(kind)
    names = [s.name for s in schemas]
    if name is not None and name not in names:
        raise UserError(f"unknown format {name!r}{did_you_mean(name, names)}: allowed are {', '.join(names)}")
    check_fields(given, {field for schema in schemas for field in schema.fields})
    chosen = [s for s in schemas if name in (None, s.name)]
    fitting = [Schema(s.name, {**s.fields, **given}, s.optional) for s in chosen if given.keys() <= s.fields.keys()]
    if not fitting:
        raise UserError(
            f"format {chosen[0].name} has the fields {', '.join(chosen[0].fields)}, not {', '.join(given)}"
            if name is not None
            else f"no known format has all of the fields {', '.join(given)}: give fewer"
        )
    return fitting


def check_fields(given: Mapping[str, str], allowed: Collection[str]) -> None:
    """Raise `UserError` for a field that is not there, or one that names no column."""
    for field, column in given.items():
        if field not in allowed:
            raise UserError(
                f"unknown field {field!r}{did_you_mean(field, allowed)}: allowed are {', '.join(sorted(allowed))}"
            )
        if not isinstance(column, str):
            raise UserError(f"fields.{field} must name a column, got {column!r}")


def first_values(source: str | Path) -> dict[str, Any]:
    """Every column that holds something in the first rows of a file, with the first thing it holds."""
    found: dict[str, Any] = {}
    for place, record in islice(records(source), _LOOKED_AT):
        for column, value in mapping(place, record).items():
            if value is not None:
                found.setdefault(str(column), value)
    return found
