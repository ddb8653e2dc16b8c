"""Weights & Biases; `mode: offline` (or WANDB_MODE=offline) keeps everything here until `wandb sync`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import wandb

from k2rl.trackers.base import TrackedRun


class Wandb:
    """Options are those of `wandb.init`; the project is k2rl unless given."""

    def __init__(self, run: TrackedRun, **options: Any) -> None:
        given: dict[str, Any] = {
            "project": "k2rl",
            "name": run.name,
            "dir": str(run.folder),
            "config": dict(run.recipe),
        }
        # What the run prints is not wandb's to capture: its lines are drawn anew in place.
        given |= {"id": run.id, "resume": run.id and "allow", "settings": wandb.Settings(console="off")}
        self._run = wandb.init(**given | options)
        self.id: str | None = self._run.id
        # Not by wandb's own steps: these never go back, and it would drop iterations that are made again.
        self._run.define_metric("*", step_metric="iteration")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({**metrics, "iteration": step})

    def close(self) -> None:
        self._run.finish()
