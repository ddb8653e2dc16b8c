"""Everything a run needs to continue identically, written atomically.

`checkpoints/000050/` holds the weights and optimizer moments (safetensors), `state.json` (iteration, curriculum,
PTX position, unfinished rollouts, …) and `manifest.json` with a checksum of each. A checkpoint is written beside
its place, flushed, and renamed: it is whole or it is not there. Nothing in it is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from k2rl.errors import UserError
from k2rl.protocols import Trainer
from k2rl.types import SCHEMA_VERSION

_STATE = {"state.json"}
_CRITIC = {"critic.safetensors"}


class Saved(Protocol):
    """What else a run trains: writes its tensors into `critic.safetensors` of an existing folder, and reads them."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


def save(
    root: Path, iteration: int, trainer: Trainer, state: dict[str, Any], keep: int, critic: Saved | None = None
) -> Path:
    """Write the checkpoint of `iteration` and delete all but the `keep` newest."""
    target, draft = root / f"{iteration:06d}", root / f".draft-{iteration:06d}"
    root.mkdir(exist_ok=True)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    trainer.save(draft)
    if critic is not None:
        critic.save(draft)
    state = {"schema_version": SCHEMA_VERSION, "iteration": iteration, **state}
    (draft / "state.json").write_text(json.dumps(state), encoding="utf-8")
    files = {path.name: _checksum(path) for path in sorted(draft.iterdir())}
    manifest = {"schema_version": SCHEMA_VERSION, "files": files}
    (draft / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in (*draft.iterdir(), draft):
        _flush(path)
    shutil.rmtree(target, ignore_errors=True)
    draft.rename(target)
    _flush(root)
    for old in existing(root)[:-keep]:
        shutil.rmtree(old)
    return target


def existing(root: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(p for p in root.glob("[0-9]*") if p.is_dir())


def load(root: Path, trainer: Trainer, critic: Saved | None = None) -> dict[str, Any] | None:
    """Load the newest checkpoint into the trainer (and the critic) and return its state; None if there is none.

    Raises:
        UserError: it is damaged, of another version, or of another model.
    """
    found = existing(root)
    if not found:
        return None
    newest = found[-1]
    fix = f"delete {newest} to resume from {found[-2].name}" if len(found) > 1 else "start a new run directory"
    try:
        manifest = json.loads((newest / "manifest.json").read_text(encoding="utf-8"))
        if manifest.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"checkpoint {newest} has schema version {manifest.get('schema_version')}, this k2rl reads "
                f"{SCHEMA_VERSION}: resume it with the version that wrote it"
            )
        files = manifest["files"]
        wanted = trainer.files | _STATE | (_CRITIC if critic is not None else set())
        if _optimizers(files) not in ("none", _optimizers(wanted)):
            raise UserError(
                f"checkpoint {newest} was made with another trainer.backend, trainer.ranks or trainer.zero_stage: it "
                f"has {_optimizers(files)}, this run's has {_optimizers(wanted)}; resume it as it was started"
            )
        if set(files) != wanted:
            raise ValueError(f"its manifest names {', '.join(sorted(files)) or 'nothing'}")
        for name, checksum in files.items():
            if _checksum(newest / name) != checksum:
                raise ValueError(f"{name} does not match its checksum")
        state: dict[str, Any] = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    except UserError:
        raise
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"checkpoint {newest} is damaged ({error}): {fix}") from None
    trainer.load(newest)
    if critic is not None:
        critic.load(newest)
    return state


def _optimizers(files: Iterable[str]) -> str:
    return ", ".join(sorted(name for name in files if name.startswith("optimizer"))) or "none"


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
