"""TensorBoard: event files in the run directory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import yaml
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.text.summary import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from k2rl.trackers.base import TrackedRun


class TensorBoard:
    """Without torch's `SummaryWriter`, which makes an event of each value and not of each iteration.

    Args:
        folder: where the event files are; the tracker's own folder unless given.
    """

    id = None

    def __init__(self, run: TrackedRun, folder: str | None = None) -> None:
        self._writer = EventFileWriter(folder or str(run.folder))
        # Hides what was logged after the checkpoint that a run goes on from.
        self._write(run.first, session_log=SessionLog(status=SessionLog.START))
        recipe = yaml.safe_dump(dict(run.recipe), sort_keys=False)
        self._write(0, summary=text_pb("recipe", f"```yaml\n{recipe}```"))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        values = [Summary.Value(tag=key, simple_value=value) for key, value in metrics.items()]
        self._write(step, summary=Summary(value=values))

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, **what: Any) -> None:
        self._writer.add_event(Event(wall_time=time.time(), step=step, **what))
        self._writer.flush()
