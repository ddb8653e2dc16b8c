"""The contract of data rows: errors name file, line and field; splits are disjoint and stable."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from k2rl.errors import UserError
from k2rl.rows import load_splits, read_rows, shuffled

FIELDS = {"prompt": "question", "answer": "answer"}
ROWS: list[dict[str, Any]] = [{"question": f"What is {n}+1?", "answer": n + 1} for n in range(300)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n", "utf-8")
    return path


def test_the_three_formats_read_alike(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    arrow = pytest.importorskip("pyarrow")
    lines = jsonl(tmp_path / "a.jsonl", ROWS)
    listed = tmp_path / "a.json"
    listed.write_text(json.dumps(ROWS), "utf-8")
    table = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist(ROWS), table)
    read = [[r.values for r in read_rows(p, FIELDS)] for p in (lines, listed, table)]
    assert read[0] == read[1] == read[2]
    assert read[0][3] == {"prompt": "What is 3+1?", "answer": 4}


def test_two_columns_join_and_a_plus_in_a_name_is_allowed(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"Body": "Two cats. ", "Question": "How many?", "a+b": 2}])
    row = read_rows(path, {"prompt": "Body+Question", "answer": "a+b"})[0]
    assert row.values == {"prompt": "Two cats. How many?", "answer": 2}
    assert row.place == f"{path}, line 1"


def test_odd_line_breaks_inside_a_text_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff{"question": "a\u2028b", "answer": 1}\r\n\n{"question": "c", "answer": 2}'.encode())
    assert [r.prompt for r in read_rows(path, FIELDS)] == ["a\u2028b", "c"]


def bad_file(name: str, content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


@pytest.mark.parametrize(
    ("make", "fields", "told"),
    [
        (lambda folder: folder / "none.jsonl", FIELDS, ["no data file", "none.jsonl"]),
        (bad_file("a.jsonl", b"\n \n"), FIELDS, ["a.jsonl holds no rows"]),
        (bad_file("a.json", b""), FIELDS, ["a.json holds no rows"]),
        (bad_file("a.json", b'{"question": 1}'), FIELDS, ["a.json", "list of rows"]),
        (bad_file("a.csv", b"x"), FIELDS, [".csv", ".jsonl", ".parquet"]),
        (
            bad_file("a.jsonl", b'{"question": "q", "answer": 1}\n{"question":'),
            FIELDS,
            ["line 2", "not JSON"],
        ),
        (bad_file("a.json", b'[{"question": "q"},\n oops]'), FIELDS, ["line 2", "not JSON"]),
        (bad_file("a.jsonl", b"[1]"), FIELDS, ["line 1", "object"]),
        (bad_file("a.jsonl", b'{"question": "q", "answer": 1}\n"\xff"'), FIELDS, ["line 2", "UTF-8"]),
        (
            bad_file("a.jsonl", b'{"question": "q", "answer": 1}\n{"questoin": "q", "answer": 1}'),
            FIELDS,
            ["line 2", "'question'", "did you mean 'questoin'", "questoin, answer", "fields.prompt"],
        ),
        (
            bad_file("a.jsonl", b'{"question": "q", "answer": null}'),
            FIELDS,
            ["line 1", "'answer'", "question"],
        ),
        (bad_file("a.jsonl", b'{"question": 7, "answer": 1}'), FIELDS, ["line 1", "'question'", "text"]),
        (bad_file("a.parquet", b"no parquet"), FIELDS, ["a.parquet", "not a readable parquet"]),
    ],
)
def test_errors_name_the_place(
    make: Callable[[Path], Path], fields: Mapping[str, str], told: list[str], tmp_path: Path
) -> None:
    path = make(tmp_path)
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    with pytest.raises(UserError) as caught:
        read_rows(path, fields)
    for part in told:
        assert part in str(caught.value)


def test_parquet_without_pyarrow_names_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'pip install "k2rl\[parquet\]"'):
        read_rows(bad_file("a.parquet", b"x")(tmp_path), FIELDS)


def test_splits_are_disjoint_stable_and_keep_duplicates_together(tmp_path: Path) -> None:
    twice = [*ROWS, *({**r, "question": r["question"] + "  ", "answer": -1} for r in ROWS)]
    splits = load_splits(jsonl(tmp_path / "a.jsonl", twice), None, FIELDS)
    train, test = ({r.prompt for r in splits[s]} for s in ("train", "test"))
    assert not train & test
    assert len(train) + len(test) == len(splits["train"]) + len(splits["test"]) == 300
    assert 15 <= len(test) <= 45
    again = load_splits(jsonl(tmp_path / "b.jsonl", ROWS[::-1]), None, FIELDS)
    assert {r.prompt for r in again["test"]} == test
    assert {r.prompt for r in load_splits(tmp_path / "b.jsonl", None, FIELDS, 0.3)["test"]} > test


def test_rows_of_the_test_file_leave_the_training_rows(tmp_path: Path) -> None:
    data, held = jsonl(tmp_path / "a.jsonl", ROWS), jsonl(tmp_path / "b.jsonl", ROWS[:50])
    splits = load_splits(data, held, FIELDS)
    assert (len(splits["train"]), len(splits["test"])) == (250, 50)
    with pytest.raises(UserError, match="no row is left to train on"):
        load_splits(held, data, FIELDS)


def test_a_share_or_file_that_leaves_a_side_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="test_share"):
        load_splits(jsonl(tmp_path / "a.jsonl", ROWS), None, FIELDS, 1.0)
    with pytest.raises(UserError, match="falls in the test split"):
        load_splits(jsonl(tmp_path / "a.jsonl", ROWS[:1]), None, FIELDS, 0.01)


def test_the_order_is_fixed_by_the_seed(tmp_path: Path) -> None:
    rows = read_rows(jsonl(tmp_path / "a.jsonl", ROWS), FIELDS)
    first = [r.prompt for r in shuffled(rows, "train", 1)]
    assert first == [r.prompt for r in shuffled(rows, "train", 1)]
    assert first != [r.prompt for r in shuffled(rows, "train", 2)]
    assert sorted(first) == sorted(r.prompt for r in rows)
