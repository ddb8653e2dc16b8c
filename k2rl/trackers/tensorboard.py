"""TensorBoard: event files in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from torch.utils.tensorboard.writer import SummaryWriter

from k2rl.trackers.base import TrackedRun


class TensorBoard:
    """Options are those of `SummaryWriter`; `log_dir` is the tracker's folder unless given."""

    id = None

    def __init__(self, run: TrackedRun, **options: Any) -> None:
        # Of what was logged after the checkpoint that a run goes on from, `purge_step` hides the first version.
        self._writer = SummaryWriter(**{"log_dir": str(run.folder), "purge_step": run.first, **options})
        self._writer.add_text("recipe", f"```yaml\n{yaml.safe_dump(dict(run.recipe), sort_keys=False)}```")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
