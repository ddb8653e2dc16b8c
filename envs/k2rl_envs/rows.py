"""Rows of a data file (JSON lines, a JSON list, parquet) under names of ours, split into train and test.

The field map says which column holds what, `{"prompt": "question", "answer": "answer"}`; `"Body+Question"`
joins two columns with a space. What is wrong with a file is told by file, line and field.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from k2rl import rng
from k2rl.errors import UserError, did_you_mean
from k2rl.types import Split

T = TypeVar("T")

TEST_SHARE = 0.1


@dataclass(frozen=True)
class Row:
    """One row: `values` by our names, `columns` their names in the file, `place` such as
    `train.jsonl, line 3`."""

    values: Mapping[str, Any]
    columns: Mapping[str, str]
    place: str

    @property
    def prompt(self) -> str:
        return str(self.values["prompt"])

    def error(self, name: str, problem: str) -> UserError:
        """A user's error about one of the values."""
        return UserError(f"{self.place}, field {self.columns[name]!r}: {problem}")


def field_map(given: Mapping[str, str] | None, default: Mapping[str, str]) -> dict[str, str]:
    """The default field map with the user's columns in it."""
    for name, column in (given or {}).items():
        if name not in default:
            raise UserError(f"unknown field {name!r}{did_you_mean(name, default)}: allowed are {', '.join(default)}")
        if not isinstance(column, str):
            raise UserError(f"fields.{name} must name a column, got {column!r}")
    return {**default, **(given or {})}


def read_rows(path: str | Path, fields: Mapping[str, str], optional: Collection[str] = ()) -> list[Row]:
    """The rows of a file with the fields of the map; a row may lack the `optional` ones.

    Raises:
        UserError: no such file, an unknown kind of file, one that can't be read or is empty, a row without
            one of the fields, a prompt that is no text.
    """
    return [_row(place, record, fields, optional) for place, record in _records(path)]


def columns(path: str | Path) -> list[str]:
    """The columns of a file's first row that hold something. Raises `UserError` as `read_rows` does."""
    place, record = next(_records(path))
    return [name for name, value in _mapping(place, record).items() if value is not None]


def _records(path: str | Path) -> Iterator[tuple[str, object]]:
    """The place and the content of every row."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no data file {path} (looked in {Path.cwd()})")
    readers = {".jsonl": _json_lines, ".json": _json_list, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: can't read {path.suffix or 'a file without suffix'}: use {', '.join(readers)}")
    place = ""
    for place, record in readers[path.suffix](path):
        yield f"{path}, {place}", record
    if not place:
        raise UserError(f"{path} holds no rows")


def load_splits(
    data: str | Path,
    test_data: str | Path | None,
    fields: Mapping[str, str],
    test_share: float = TEST_SHARE,
    optional: Collection[str] = (),
    same: Callable[[Row], object] | None = None,
) -> dict[Split, list[Row]]:
    """Train and test rows in file order, no prompt twice, and none on both sides.

    With `test_data` that file is the test split, and training rows with a prompt of it are dropped. Without,
    a hash of the prompt decides (of the prompt alone, so that its duplicates fall on one side). `same` says what rows
    that are the same have in common, where that is more than the prompt.

    Raises:
        UserError: as `read_rows`; a share outside (0, 1); a side that is left without rows.
    """
    if not 0.0 < test_share < 1.0:
        raise UserError(f"test_share must lie between 0 and 1, got {test_share!r}")
    rows = _distinct(read_rows(data, fields, optional), same or _prompt_key)
    splits: dict[Split, list[Row]]
    if test_data is not None:
        test = _distinct(read_rows(test_data, fields, optional), same or _prompt_key)
        held_out = {_prompt_key(r) for r in test}
        splits = {"train": [r for r in rows if _prompt_key(r) not in held_out], "test": test}
        if not splits["train"]:
            raise UserError(f"every prompt of {data} is also in {test_data}: no row is left to train on")
        return splits
    splits = {"train": [], "test": []}
    for row in rows:
        in_test = rng.in_test_split("rows", _prompt_key(row), share=test_share)
        splits["test" if in_test else "train"].append(row)
    for split, found in splits.items():
        if not found:
            raise UserError(
                f"{data}: none of its {len(rows)} rows falls in the {split} split at "
                f"test_share={test_share:g}: change test_share or give test_data"
            )
    return splits


def shuffled(rows: Sequence[T], split: Split, seed: int) -> Iterator[T]:
    """The rows (or what was made of them) in an order fixed by split and seed."""
    for i in rng.generator("rows", split, seed).permutation(len(rows)):
        yield rows[int(i)]


def _prompt_key(row: Row) -> str:
    return " ".join(row.prompt.split())


def _distinct(rows: Iterable[Row], same: Callable[[Row], object]) -> list[Row]:
    return list({same(r): r for r in reversed(list(rows))}.values())[::-1]


def _mapping(place: str, record: object) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise UserError(f"{place}: a row must be an object of fields, got {type(record).__name__}")
    return record


def _row(place: str, record: object, fields: Mapping[str, str], optional: Collection[str]) -> Row:
    record = _mapping(place, record)
    values = {}
    for name, column in fields.items():
        parts = [column] if column in record else [c.strip() for c in column.split("+")]
        if name in optional and any(record.get(part) is None for part in parts):
            continue
        for part in parts:
            if record.get(part) is None:
                known = [str(k) for k, v in record.items() if v is not None]
                raise UserError(
                    f"{place}: no field {part!r} for {name}{did_you_mean(part, known)}: "
                    f"the row has {', '.join(known) or 'none'}; set fields.{name}"
                )
        values[name] = record[parts[0]] if len(parts) == 1 else " ".join(str(record[p]).strip() for p in parts)
    row = Row(values, dict(fields), place)
    if "prompt" in values and not (isinstance(values["prompt"], str) and values["prompt"].strip()):
        raise row.error("prompt", f"a prompt must be text, got {values['prompt']!r}")
    return row


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None


def _json_lines(path: Path) -> Iterator[tuple[str, object]]:
    # Not splitlines(): JSON strings may hold U+2028 and its like.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON: {error.msg} (column {error.colno})") from None


def _json_list(path: Path) -> Iterator[tuple[str, object]]:
    text = _text(path)
    try:
        records = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON: {error.msg} (JSON lines go in .jsonl)") from None
    if not isinstance(records, list):
        raise UserError(f"{path}: must hold a list of rows, got {type(records).__name__}")
    yield from ((f"row {i}", record) for i, record in enumerate(records, start=1))


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f'reading {path} needs pyarrow: pip install "k2rl[parquet]"') from None
    try:
        records = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None
    yield from ((f"row {i}", record) for i, record in enumerate(records, start=1))
