"""Trackio: a local data base that `trackio show` draws, or a Space of Hugging Face with `space_id`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import trackio

from k2rl.trackers.base import TrackedRun


class Trackio:
    """Options are those of `trackio.init`; the project is k2rl unless given. A run is found again by its name."""

    def __init__(self, run: TrackedRun, **options: Any) -> None:
        given = {"project": "k2rl", "name": run.id or run.name, "config": dict(run.recipe), "resume": "allow"}
        with redirect_stdout(sys.stderr):  # where `k2rl train --json` has nothing to say
            self._run = trackio.init(**given | options)
        self.id: str | None = self._run.name

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        with redirect_stdout(sys.stderr):
            self._run.finish()
