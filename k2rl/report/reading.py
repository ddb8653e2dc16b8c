"""A run's folder as others read it: also one that still runs, was killed, or holds a line that was never finished."""

from __future__ import annotations

import fcntl
import gzip
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from k2rl.errors import UserError

Row = dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """What a run has left. `rows` are its metrics, one for each iteration, in order; `summary` is None before its end.
    `state` is `finished`, `running` (somebody holds its lock) or `stopped`."""

    folder: Path
    name: str
    recipe: Mapping[str, Any]
    rows: tuple[Row, ...]
    summary: Mapping[str, Any] | None
    state: str

    @classmethod
    def of(cls, folder: Path) -> RunFiles:
        """Raises `UserError` where there is no run, or none that has finished an iteration."""
        if not (folder / "recipe.yaml").is_file():
            raise UserError(f"no run in {folder}: it has no recipe.yaml; give the --run-dir of a `k2rl train`")
        rows = tuple(lines(folder / "metrics.jsonl"))
        if not rows:
            raise UserError(f"nothing to show of {folder} yet: no iteration of this run was finished")
        with (folder / "recipe.yaml").open(encoding="utf-8") as file:
            recipe = yaml.safe_load(file)
        summary = None
        if (folder / "summary.json").is_file():
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        state = "finished" if summary is not None else "running" if _locked(folder / "lock") else "stopped"
        return cls(folder, folder.resolve().name, recipe, rows, summary, state)

    @property
    def envs(self) -> list[str]:
        """The environments that were trained on."""
        return sorted({key.split("/", 1)[1] for row in self.rows for key in row if key.startswith("tokens/")})

    @property
    def iterations(self) -> list[int]:
        return [int(row["iteration"]) for row in self.rows]

    def kept(self, kind: str, iteration: int) -> list[Row]:
        """The rows of a kind (see `dump.py`) of an iteration; none where there is no such file."""
        path = self.folder / kind / f"{iteration:06d}.jsonl.gz"
        return list(lines(path)) if path.is_file() else []


def lines(path: Path) -> Iterator[Row]:
    """A file's rows of JSON, zipped or not; one that was never finished is left out."""
    if not path.is_file():
        return
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "surrogatepass")
    for line in text.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _locked(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
