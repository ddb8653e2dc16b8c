"""Graders that may hang, crash or eat all memory: child processes that can be killed, and whose fault a failure is."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any

from k2rl.types import Status, Verdict

MEMORY_BYTES = 2 << 30
"""The address space of a grader process."""


class GraderError(Exception):
    """The grader gave no finding. `status`: it ran out of time, or it crashed or raised."""

    def __init__(self, status: Status, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def attributed(attempt: Callable[[], bool], control: Callable[[], bool], wrong: str) -> Verdict:
    """The verdict of `attempt`, with a failure put down to whoever causes it.

    A failure that repeats while the control passes is the answer's doing, hence malformed: were it left
    unscored, hanging the grader would be a way out of a bad reward.
    """
    try:
        passed = attempt()
    except GraderError as first:
        try:
            if not control():
                return Verdict.failure(Status.VERIFIER_ERROR, f"{first}; the gold answer fails as well")
        except GraderError as also:
            return Verdict.failure(also.status, f"{first}; the gold answer fails as well: {also}")
        try:
            passed = attempt()
        except GraderError as again:
            return Verdict.malformed(f"on this answer the grader fails, twice: {again}")
    return Verdict.of(passed, "" if passed else wrong)


class GraderProcess:
    """One child process that answers calls, one at a time, each under a deadline. Thread-safe.

    `factory` is `module:function`; the child calls it once, and what it returns answers the calls. Arguments
    and results are JSON. The child starts at the first call, is killed when a call is late, and starts anew
    at the next one. It is no sandbox: it bounds time and memory, not what the code it runs may touch.

    A plain subprocess rather than `multiprocessing`, whose children import the main module once more (and
    torch with it) and can't be had inside daemonic workers.
    """

    start_s = 60.0

    def __init__(self, factory: str) -> None:
        self.factory = factory
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._lock = threading.Lock()
        _graders.add(self)

    def call(self, *args: object, deadline_s: float) -> Any:
        """The result of a call.

        Raises:
            GraderError: it took longer than `deadline_s`, raised, or the child died.
        """
        with self._lock:
            try:
                if self._pipe is None or self._process is None or self._process.poll() is not None:
                    self._start()
                reply = self._ask({"args": args, "deadline_s": deadline_s}, deadline_s)
            except BaseException:  # Its late reply must not answer the next call.
                self.close()
                raise
        if "error" in reply:
            raise GraderError(Status.VERIFIER_ERROR, str(reply["error"]))
        return reply["value"]

    def close(self) -> None:
        """Kill the child; a later call starts another."""
        process, self._process = self._process, None
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.kill()
            process.wait()

    def forget(self) -> None:
        """In a forked child: the parent's grader, and a lock it may hold, are not ours."""
        self._process, self._pipe, self._lock = None, None, threading.Lock()

    def _start(self) -> None:
        self.close()
        code = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from k2rl_rewards.grader import serve; serve(*sys.argv[2:])"
        )
        self._pipe, theirs = Pipe()
        with theirs:
            arguments = [json.dumps(sys.path), self.factory, str(theirs.fileno()), str(os.getpid())]
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C stops the run, which then stops its graders.
            )
        self._ask(None, self.start_s)

    def _ask(self, job: object, deadline_s: float) -> dict[str, Any]:
        assert self._pipe is not None
        assert self._process is not None
        try:
            if job is not None:
                self._pipe.send_bytes(json.dumps(job).encode())
            if not self._pipe.poll(deadline_s):
                raise GraderError(Status.TIMEOUT, f"no finding within {deadline_s:g} s")
            reply: dict[str, Any] = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError):
            code = self._process.wait()
            raise GraderError(Status.VERIFIER_ERROR, f"the grader's process ended with code {code}") from None
        return reply


class GraderPool:
    """Grader processes that are called from several threads at once. `call` is `GraderProcess.call`.

    There are as many as usable cores, started when they are first needed. A thread that finds them all busy for
    `patience_s` seconds gets one more (at most `most` in all), so that answers that hang delay no other thread's.
    """

    def __init__(self, factory: str, size: int | None = None, most: int = 32, patience_s: float = 0.25) -> None:
        self.factory = factory
        self.size = size or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.most = max(most, self.size)
        self.patience_s = patience_s
        self._idle: list[GraderProcess] = []
        self._count = 0
        self._changed = threading.Condition()
        _graders.add(self)

    def call(self, *args: object, deadline_s: float) -> Any:
        grader = self._take()
        try:
            return grader.call(*args, deadline_s=deadline_s)
        finally:
            self._give_back(grader)

    def close(self) -> None:
        """Kill the idle processes; those in use end with their calls, a later call starts others."""
        with self._changed:
            idle, self._idle = self._idle, []
            self._count -= len(idle)
        for grader in idle:
            grader.close()

    def forget(self) -> None:
        """In a forked child: as new."""
        self._idle, self._count, self._changed = [], 0, threading.Condition()

    def _take(self) -> GraderProcess:
        with self._changed:
            limit = self.size
            while not self._idle:
                if self._count < limit:
                    self._count += 1
                    return GraderProcess(self.factory)
                if not self._changed.wait(self.patience_s):
                    limit = self.most
            return self._idle.pop()

    def _give_back(self, grader: GraderProcess) -> None:
        with self._changed:
            keep = len(self._idle) < self.size
            if keep:
                self._idle.append(grader)
            else:
                self._count -= 1
            self._changed.notify()
        if not keep:
            grader.close()


_graders: weakref.WeakSet[GraderProcess | GraderPool] = weakref.WeakSet()


def _forget_all() -> None:
    for grader in list(_graders):
        grader.forget()


@atexit.register
def _close_all() -> None:
    for grader in list(_graders):
        grader.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)


def serve(factory: str, pipe: str, parent: str) -> None:
    """The child's loop: read a job, answer it, until the parent closes the pipe or is gone."""
    import resource
    import signal

    with Connection(int(pipe)) as jobs:
        module, _, name = factory.partition(":")
        answer = getattr(importlib.import_module(module), name)()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # What the graded code prints is nobody's.
            os.dup2(null, stream)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        jobs.send_bytes(b"{}")
        while True:
            # A dead parent's end of the pipe stays open in children it forked: the end of file may never come.
            while not jobs.poll(2.0):
                if os.getppid() != int(parent):
                    return
            try:
                job = json.loads(jobs.recv_bytes())
            except (EOFError, OSError):
                return
            # The kernel ends a child whose parent died before it could kill it.
            signal.setitimer(signal.ITIMER_REAL, job["deadline_s"] + 2.0)
            try:
                reply = {"value": answer(*job["args"])}
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"[:300]}
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            try:
                jobs.send_bytes(json.dumps(reply).encode())
            except OSError:
                return
