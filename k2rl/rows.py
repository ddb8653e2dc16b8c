"""Rows of a data file or data set (see `records.py`) under names of ours, split into train and test.

The field map says which column holds what, `{"prompt": "question", "answer": "answer"}`; `"Body+Question"` joins two
columns with a space, `"reward_model.ground_truth"` looks into one. What is wrong with a file is told by file, line and
field.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from k2rl import rng
from k2rl.errors import UserError, did_you_mean
from k2rl.records import records
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


def read_rows(path: str | Path, fields: Mapping[str, str], optional: Collection[str] = ()) -> list[Row]:
    """The rows of a file with the fields of the map; a row may lack the `optional` ones.

    Raises:
        UserError: as `records`; a row without one of the fields, a prompt that is no text.
    """
    return [row_of(place, record, fields, optional) for place, record in records(path)]


def load_splits(
    data: str | Path,
    test_data: str | Path | None,
    fields: Mapping[str, str],
    test_share: float = TEST_SHARE,
    optional: Collection[str] = (),
    same: Callable[[Row], object] | None = None,
    test_fields: Mapping[str, str] | None = None,
) -> dict[Split, list[Row]]:
    """Train and test rows in file order, no prompt twice, and none on both sides.

    With `test_data` that file is the test split, and training rows with a prompt of it are dropped. Without,
    a hash of the prompt decides (of the prompt alone, so that its duplicates fall on one side). `same` says what rows
    that are the same have in common, where that is more than the prompt; `test_fields` are those of `test_data`, where
    they differ.

    Raises:
        UserError: as `read_rows`; a share outside (0, 1); a side that is left without rows.
    """
    if not 0.0 < test_share < 1.0:
        raise UserError(f"test_share must lie between 0 and 1, got {test_share!r}")
    rows = _distinct(read_rows(data, fields, optional), same or _prompt_key)
    splits: dict[Split, list[Row]]
    if test_data is not None:
        test = _distinct(read_rows(test_data, test_fields or fields, optional), same or _prompt_key)
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


def mapping(place: str, record: object) -> Mapping[str, Any]:
    """A row's content. Raises `UserError` where it is no object."""
    if not isinstance(record, Mapping):
        raise UserError(f"{place}: a row must be an object of fields, got {type(record).__name__}")
    return record


def holds(record: Mapping[str, Any], column: str) -> bool:
    """Whether a row has something in every part of a column's name."""
    return all(_look(record, part) is not None for part in _parts(record, column))


def row_of(place: str, record: object, fields: Mapping[str, str], optional: Collection[str] = ()) -> Row:
    """A row with the fields of the map. Raises `UserError` as `read_rows`."""
    record = mapping(place, record)
    values = {}
    for name, column in fields.items():
        if name in optional and not holds(record, column):
            continue
        parts = _parts(record, column)
        found = [_look(record, part) for part in parts]
        if None in found:
            part = parts[found.index(None)]
            known = [str(k) for k, v in record.items() if v is not None]
            raise UserError(
                f"{place}: no field {part!r} for {name}{did_you_mean(part, known)}: "
                f"the row has {', '.join(known) or 'none'}; set fields.{name}"
            )
        values[name] = found[0] if len(found) == 1 else " ".join(str(value).strip() for value in found)
    row = Row(values, dict(fields), place)
    if "prompt" in values and not (isinstance(values["prompt"], str) and values["prompt"].strip()):
        raise row.error("prompt", f"a prompt must be text, got {values['prompt']!r}")
    return row


def _parts(record: Mapping[str, Any], column: str) -> list[str]:
    """The columns that a name joins, unless there is one of the whole name."""
    return [column] if column in record else [part.strip() for part in column.split("+")]


def _look(record: Mapping[str, Any], column: str) -> Any:
    """A column's value; `a.0.b` looks into it where there is none of the whole name. None where there is nothing."""
    if column in record:
        return record[column]
    value: Any = record
    for step in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value
