"""The rows of a data file (JSON lines, a JSON list, parquet) or of a data set of Hugging Face, as they are.

A place is a path, or `hf:REPO[:CONFIG][@SPLIT]`: `hf:openai/gsm8k:main@test`. REPO may be a local folder, also one that
`save_to_disk` wrote; the split is `train` unless named, and may be a slice (`train[:1000]`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from k2rl.errors import UserError

KINDS = (".jsonl", ".json", ".parquet")
_HUB = re.compile(r"hf:(?P<repo>[^:@]+)(?::(?P<config>[^:@]+))?(?:@(?P<split>.+))?")
_SAVED = ("dataset_dict.json", "state.json")


def records(source: str | Path) -> Iterator[tuple[str, object]]:
    """The place (`train.jsonl, line 3`) and the content of every row.

    Raises:
        UserError: no such file or data set, an unknown kind of file, one that can't be read, or one without rows.
    """
    place = ""
    for place, record in _read(source):
        yield f"{source}, {place}", record
    if not place:
        raise UserError(f"{source} holds no rows")


def is_hub(source: str | Path) -> bool:
    """Whether a place is a data set of `datasets` and no file."""
    return str(source).startswith("hf:")


def _read(source: str | Path) -> Iterator[tuple[str, object]]:
    if is_hub(source):
        return ((f"row {i}", record) for i, record in enumerate(_data_set(str(source)), start=1))
    path = Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"no data file {path} (looked in {Path.cwd()})")
    readers = {".jsonl": _lines, ".json": _json_list, ".parquet": _parquet}
    if path.suffix not in readers:
        raise UserError(f"{path}: can't read {path.suffix or 'a file without suffix'}: use {', '.join(KINDS)}")
    return readers[path.suffix](path)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None


def _lines(path: Path) -> Iterator[tuple[str, object]]:
    return ((f"line {number}", record) for number, record in json_lines(path))


def json_lines(path: Path) -> Iterator[tuple[int, object]]:
    """The number and the content of every line of a JSONL that is not empty.

    Raises:
        UserError: a file that can't be read, or a line that is not JSON.
    """
    # Not splitlines(): JSON strings may hold U+2028 and its like.
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {number}: not JSON: {error.msg} (column {error.colno})") from None


def _json_list(path: Path) -> Iterator[tuple[str, object]]:
    text = _text(path)
    try:
        found = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON: {error.msg} (JSON lines go in .jsonl)") from None
    if isinstance(found, dict):  # BIG-Bench's files: {"canary": …, "examples": [rows]}
        lists = [value for value in found.values() if isinstance(value, list)]
        found = lists[0] if len(lists) == 1 else found
    if not isinstance(found, list):
        raise UserError(f"{path}: must hold a list of rows, got {type(found).__name__}")
    yield from ((f"row {i}", record) for i, record in enumerate(found, start=1))


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f'reading {path} needs pyarrow: pip install "k2rl[parquet]"') from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield f"row {number}", record
    except (ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {str(error).splitlines()[0]}") from None


@lru_cache(maxsize=4)
def _data_set(source: str) -> Any:
    """A data set, once per process: every worker makes its own environment."""
    match = _HUB.fullmatch(source)
    if match is None:
        raise UserError(f"{source}: write hf:REPO[:CONFIG][@SPLIT], such as hf:openai/gsm8k:main@train")
    try:
        import datasets
        from huggingface_hub.utils import logging
    except ImportError:
        raise UserError(f'reading {source} needs datasets: pip install "k2rl[datasets]"') from None
    repo, config, split = match["repo"], match["config"], match["split"] or "train"
    folder = Path(repo).expanduser()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # A dead network is one line of ours, not a dozen retries of theirs.
    try:
        if folder.is_dir() and any((folder / name).exists() for name in _SAVED):
            return _one_split(source, datasets.load_from_disk(str(folder)), split)
        return datasets.load_dataset(str(folder) if folder.is_dir() else repo, config, split=split)
    except ConnectionError as error:
        raise UserError(f"{source} can't be reached: {_line(error)}; give a file or folder instead") from None
    except UserError:
        raise
    except Exception as error:  # What a foreign library raises about an id, a config, a split or a file is the user's.
        raise UserError(f"{source} can't be loaded: {_line(error)}") from None
    finally:
        logging.set_verbosity(verbosity)


def _one_split(source: str, found: Any, split: str) -> Any:
    """The split of what `save_to_disk` wrote, which is one data set or several by name."""
    if not isinstance(found, dict):
        return found
    if split not in found:
        raise UserError(f"{source}: no split {split!r}; it has {', '.join(found)}")
    return found[split]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
