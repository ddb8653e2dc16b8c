"""The run directory: recipe, metrics, rollouts, summary; one run at a time, nothing half-written."""

from __future__ import annotations

import errno
import fcntl
import gzip
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from k2rl import recipe_files as recipes
from k2rl.dump import Rows
from k2rl.errors import RunError, UserError
from k2rl.recipe import Recipe
from k2rl.trackers.feed import Trackers
from k2rl.types import SCHEMA_VERSION

_PER_ITERATION = ("rollouts", "critiques", "judged")
"""Folders with a file for each iteration; the last two only in runs with a critic."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunLog:
    """One run directory, locked while it is open."""

    def __init__(self, folder: Path, lock: IO[str]) -> None:
        self.folder, self._lock = folder, lock
        self._trackers = Trackers()
        self.checkpoints = folder / "checkpoints"
        (folder / _PER_ITERATION[0]).mkdir(exist_ok=True)

    @classmethod
    def open(cls, folder: Path, recipe: Recipe, resume: bool) -> RunLog:
        """Create a run directory, or take up one that was interrupted.

        Raises:
            UserError: it can't be written, another run is in it, it already holds a run (and `resume` is off), it
                holds none (and `resume` is on), or its recipe is another one.
        """
        existed = folder.exists()
        begun = [folder] * existed
        if folder.is_dir():
            # A lock or a draft alone is what a run leaves that was killed before it began.
            begun = [p for p in folder.iterdir() if p.name != "lock" and not p.name.startswith(".draft-")]
        if begun and not resume:
            raise UserError(f"run directory {folder} is not empty: choose another --run-dir, or add --resume")
        if resume and not (folder / "recipe.yaml").is_file():
            raise UserError(f"nothing to resume in {folder}: it has no recipe.yaml; leave --resume out to start there")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("w")
        except OSError as error:
            raise UserError(
                f"run directory {folder} can't be written: {error.strerror}; choose another --run-dir"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another run is writing to {folder}: wait for it, or choose another --run-dir") from None
        if resume:
            before = recipes.load_saved(folder / "recipe.yaml")
            # Where a run is watched does not change it.
            changed = [k for k in recipes.differences(before, recipe) if not k.startswith("run.tracker")]
            if changed:
                raise UserError(
                    f"the recipe differs from the one in {folder} in {', '.join(changed[:5])}: resume with the same "
                    "recipe and overrides, or start a new run directory"
                )
        else:
            with writing(folder):
                recipes.save(recipe, folder / ".draft-recipe.yaml")
                os.replace(folder / ".draft-recipe.yaml", folder / "recipe.yaml")
        return cls(folder, lock)

    def truncate(self, iteration: int) -> None:
        """Delete what lies after a checkpoint: it will be made again, identically."""
        metrics = self.folder / "metrics.jsonl"
        if metrics.exists():
            rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if _whole(line)]
            kept = [json.dumps(row) + "\n" for row in rows if row["iteration"] <= iteration]
            self._write(metrics, "".join(kept).encode())
        for path in (p for kind in _PER_ITERATION for p in (self.folder / kind).glob("*")):
            number = path.name.split(".")[0]
            if not number.isdecimal() or int(number) > iteration:
                path.unlink()

    def iteration(self, metrics: Mapping[str, float], rows: Rows) -> None:
        """Append an iteration's metrics (those that have a value) and write its rows, each kind in a file that is there
        where there are any."""
        number = int(metrics["iteration"])
        finite = {k: v for k, v in metrics.items() if math.isfinite(v)} | self._trackers.metrics
        for kind in _PER_ITERATION:
            if rows[kind]:
                self._rows(kind, number, rows[kind])
        with writing(self.folder), (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"schema_version": SCHEMA_VERSION, **finite}) + "\n")
        self._trackers.log({k: v for k, v in finite.items() if k != "iteration"}, number)

    def _rows(self, folder: str, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        lines = [json.dumps({"schema_version": SCHEMA_VERSION, **row}) + "\n" for row in rows]
        packed = gzip.compress("".join(lines).encode("utf-8", "surrogatepass"), compresslevel=1, mtime=0)
        with writing(self.folder):
            (self.folder / folder).mkdir(exist_ok=True)
        self._write(self.folder / folder / f"{number:06d}.jsonl.gz", packed)

    def summary(self, summary: Mapping[str, Any]) -> None:
        self._write(self.folder / "summary.json", json.dumps(summary, indent=1).encode())

    def replace_folder(self, name: str, write: Any) -> None:
        """Fill a folder by `write(path)` and put it in place at once."""
        draft = self.folder / f".draft-{name}"
        shutil.rmtree(draft, ignore_errors=True)
        with writing(self.folder):
            draft.mkdir()
            write(draft)
            shutil.rmtree(self.folder / name, ignore_errors=True)
            draft.rename(self.folder / name)

    def track(self, recipe: Recipe, first: int) -> None:
        """Hand what is logged to the recipe's trackers as well, from iteration `first` on."""
        self._trackers = Trackers.start(recipe, self.folder, first)

    def close(self) -> None:
        self._trackers.close()
        self._lock.close()

    def _write(self, path: Path, data: bytes) -> None:
        draft = path.with_name(f".draft-{path.name}")
        with writing(path):
            draft.write_bytes(data)
            os.replace(draft, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a full disk into a named end of the run; the last checkpoint stays whole."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RunError(f"the disk is full (writing {path}): free some space, then continue with --resume") from None
        raise
    except SafetensorError as error:
        raise RunError(f"writing {path} failed ({error}): free some space, then continue with --resume") from None


def enough_space(folder: Path, needed: int) -> None:
    """Raise `UserError` unless the disk has room for what the run keeps at once, in bytes."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"the disk of {folder} has {free / 1e6:.0f} MB free, and the run's checkpoints need {needed / 1e6:.0f} MB: "
            "free some space, choose another --run-dir, or lower run.checkpoints_kept"
        )


def _whole(line: str) -> bool:
    """Whether a line was written to its end before the run was killed."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
