"""Trackers beside a run, each on a thread of its own.

A tracker may be slow, hang, or fail, in any call: the run goes on without it, and says so in one line. It waits for
them once, at its end, and not for long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import Full, Queue

from k2rl import plugins
from k2rl import recipe_files as recipes
from k2rl.progress import console
from k2rl.recipe import Recipe
from k2rl.trackers import TRACKERS
from k2rl.trackers.base import TrackedRun, Tracker

_ROOM = 200
"""Iterations a tracker may lag behind."""
_PATIENCE_S = 30.0
"""How long all trackers together have for the rest, once the run is over."""
_SILENCE_S = 2.0


class Feed:
    """One tracker, made by `begin` and called on a thread of its own.

    Once it has failed, or lags `_ROOM` iterations behind, it is left alone: `lost` then says why.
    """

    def __init__(self, name: str, begin: Callable[[], Tracker]) -> None:
        self.name, self.lost = name, ""
        self._begin = begin
        self._rows: Queue[tuple[Mapping[str, float], int] | None] = Queue(_ROOM)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._give((metrics, step))

    def end(self) -> None:
        """Nothing more will come."""
        self._give(None)

    def wait(self, seconds: float) -> bool:
        """Whether all is done, or the tracker lost, within so many seconds."""
        self._thread.join(0 if self.lost else max(seconds, 0))
        return bool(self.lost) or not self._thread.is_alive()

    def lose(self, why: str) -> None:
        """Leave it alone from now on, and say why, once."""
        with self._lock:
            if not self.lost:
                # Said before it counts as lost: the process may end as soon as it does.
                console.print(f"tracker {self.name} {why}: left alone, the run goes on", markup=False, soft_wrap=True)
                self.lost = why

    def _give(self, row: tuple[Mapping[str, float], int] | None) -> None:
        if self.lost:
            return
        try:
            self._rows.put_nowait(row)
        except Full:
            self.lose(f"is {_ROOM} iterations behind")

    def _work(self) -> None:
        doing = "start"
        try:
            tracker = self._begin()
            while (row := self._rows.get()) is not None:
                doing = "log"
                tracker.log(*row)
                if self.lost:
                    return
            doing = "close"
            tracker.close()
        except (Exception, SystemExit) as error:
            first_line = (str(error).splitlines() or [""])[0]
            self.lose(f"failed to {doing} ({type(error).__name__}: {first_line})")


class Trackers:
    """All trackers of a run."""

    def __init__(self, feeds: Sequence[Feed] = ()) -> None:
        self._feeds = feeds

    @classmethod
    def start(cls, recipe: Recipe, folder: Path, first: int) -> Trackers:
        """Those that a recipe names, for the run in `folder`, from iteration `first` on."""
        keys = recipes.flat(recipes.to_dict(recipe))

        def begin(name: str) -> Tracker:
            own = folder / "trackers" / name
            own.mkdir(parents=True, exist_ok=True)
            id_file = own / "run_id"
            known = id_file.read_text("utf-8") if id_file.exists() else None
            run = TrackedRun(folder.absolute().name, own, keys, first, known)
            made: Tracker = plugins.load_class(TRACKERS[name], name)(run, **recipe.run.tracker_args.get(name, {}))
            if made.id is not None:
                id_file.write_text(made.id, "utf-8")
            return made

        return cls([Feed(name, partial(begin, name)) for name in recipe.run.trackers])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hand an iteration's metrics on; never waits."""
        for feed in self._feeds:
            feed.log(metrics, step)

    @property
    def metrics(self) -> dict[str, float]:
        """How many were lost so far, in a run that has some."""
        return {"errors/trackers_lost": float(sum(bool(f.lost) for f in self._feeds))} if self._feeds else {}

    def close(self) -> None:
        """Wait until they have everything, `_PATIENCE_S` seconds at most."""
        for feed in self._feeds:
            feed.end()
        until = time.monotonic() + _PATIENCE_S
        left = [feed for feed in self._feeds if not feed.wait(_SILENCE_S)]
        if left:
            names = ", ".join(feed.name for feed in left)
            console.print(f"waiting for {names} to take in the rest, {_PATIENCE_S:g} s at most", markup=False)
        for feed in left:
            if not feed.wait(until - time.monotonic()):
                feed.lose(f"has not taken in everything within {_PATIENCE_S:g} s")
