"""Values that change over a run, as functions of progress in [0, 1]. Shape and values are our own choice: K2
names a temperature decay without giving either."""

from __future__ import annotations

import math
from dataclasses import dataclass

KINDS = ("constant", "linear", "cosine", "exponential")


@dataclass
class Schedule:
    """A value over the run, after a linear warm-up from 0.

    Args:
        start: the value after the warm-up.
        end: the value from `until` on; null: it stays at `start`.
        kind: how it goes from one to the other: `linear`, `cosine`, `exponential`, or `constant`, which it doesn't.
        until: the share of the run after which it is at `end`.
        warmup: the share of the run in which it rises.
    """

    start: float = 1.0
    end: float | None = None
    kind: str = "linear"
    until: float = 1.0
    warmup: float = 0.0

    def at(self, progress: float) -> float:
        """The value at `progress` in [0, 1].

        Progress is (iteration - 1) / iterations, so a resumed run finds its place without any state.
        """
        if self.warmup > 0 and progress < self.warmup:
            return self.start * progress / self.warmup
        if self.end is None or self.kind == "constant":
            return self.start
        span = max(self.until - self.warmup, 1e-12)
        p = min(max((progress - self.warmup) / span, 0.0), 1.0)
        if self.kind == "linear":
            return self.start + (self.end - self.start) * p
        if self.kind == "cosine":
            return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * p))
        return float(self.start * (self.end / self.start) ** p)

    def problem(self) -> str | None:
        """What is wrong with these settings, or None."""
        if not (math.isfinite(self.start) and (self.end is None or math.isfinite(self.end))):
            return f"start and end are finite numbers, got {self.start} and {self.end}"
        if self.kind not in KINDS:
            return f"kind is {self.kind!r}: allowed are {', '.join(KINDS)}"
        if not 0 < self.until <= 1:
            return f"until is {self.until}: it is a share of the run in (0, 1]"
        if not 0 <= self.warmup < self.until:
            return f"warmup is {self.warmup}: it is a share of the run in [0, until)"
        if self.kind == "exponential" and self.end is not None and (self.start <= 0 or self.end <= 0):
            return "an exponential schedule needs start and end above 0"
        return None
