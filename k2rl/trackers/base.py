"""What a tracker is, and what it is told of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker begins with.

    `name` is the run directory's, `folder` a folder in there of the tracker's own, `recipe` the resolved one by dotted
    keys, `first` the first iteration that will be logged. `id` is what the tracker itself called this run when it began
    (`Tracker.id`): a resumed run goes on in it; None in a new one.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any]
    first: int
    id: str | None


class Tracker(Protocol):
    """Made as `Class(run, **options)`, with the recipe's `run.tracker_args`. All calls come from one thread, and may
    raise."""

    @property
    def id(self) -> str | None:
        """What finds this run again, for `TrackedRun.id`; None where the name or the folder does."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """An iteration's metrics, all finite. After a resumption an iteration may come again, with the same values but
        for times."""

    def close(self) -> None:
        """All is logged."""
