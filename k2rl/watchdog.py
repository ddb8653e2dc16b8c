"""Says on stderr what is being waited for when it takes long, and where in the code that is. It interrupts nothing."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from k2rl.errors import foreign
from k2rl.progress import console


class Call:
    """Something under way on the thread that made this.

    `what` may be worked out when it is asked for; an empty answer means that there is nothing to say. `env` is whose
    slow calls it counts among.
    """

    def __init__(self, what: str | Callable[[], str], env: str = "") -> None:
        self.what, self.env, self.thread = what, env, threading.get_ident()
        self.touch()

    def touch(self) -> None:
        """Something moved: the time counts from now."""
        self.since, self.told = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    def place(self) -> str:
        """Where its thread is now: the innermost frame, and the innermost two outside of libraries and k2rl."""
        frame = sys._current_frames().get(self.thread)
        frames = traceback.extract_stack(frame)[::-1] if frame else []
        shown = [*frames[:1], *[f for f in frames if not foreign(f.filename)][:2]]
        return ", ".join(dict.fromkeys(f"{f.name} ({f.filename}:{f.lineno})" for f in shown))


class Watchdog:
    """A thread that tells of calls that have taken longer than `patience_s`, again whenever that time has doubled.

    Code that holds the interpreter's lock (a regular expression that backtracks for ever) stops this thread like any
    other. Then, after `silence_s`, the interpreter's own timer writes the stacks of all threads.
    """

    def __init__(self, patience_s: float, silence_s: float) -> None:
        self.patience_s, self.silence_s = patience_s, silence_s
        self._slow: Counter[str] = Counter()
        self._calls: set[Call] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="k2rl-watchdog", daemon=True).start()

    @contextmanager
    def watching(self, what: str | Callable[[], str], env: str = "") -> Iterator[Call]:
        """Watch what happens inside."""
        call = Call(what, env)
        with self._lock:
            self._calls.add(call)
        try:
            yield call
        finally:
            with self._lock:
                self._calls.remove(call)

    def take_slow(self) -> dict[str, int]:
        """How many calls of each env were told of since this was last asked."""
        with self._lock:
            slow, self._slow = self._slow, Counter()
        return dict(slow)

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.patience_s / 4)):
            faulthandler.dump_traceback_later(self.silence_s, file=2)
            with self._lock:
                late = [c for c in self._calls if c.seconds >= max(self.patience_s, 2 * c.told)]
            for call in late:
                self._tell(call)
        faulthandler.cancel_dump_traceback_later()

    def _tell(self, call: Call) -> None:
        what = call.what if isinstance(call.what, str) else call.what()
        if not what:
            return
        if call.env and not call.told:
            with self._lock:
                self._slow[call.env] += 1
        call.told = call.seconds
        console.print(f"waiting for {what} for {call.told:.0f} s: {call.place()}", markup=False, soft_wrap=True)
