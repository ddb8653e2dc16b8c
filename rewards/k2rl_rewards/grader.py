"""Graders that may hang, crash or eat all memory: a child process that can be killed, and whose fault a failure is."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from typing import Any

from k2rl.types import Status, Verdict


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
        self._lock = threading.Lock()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def call(self, *args: object, deadline_s: float) -> Any:
        """The result of a call.

        Raises:
            GraderError: it took longer than `deadline_s`, raised, or the child died.
        """
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                self._send({"args": args, "deadline_s": deadline_s})
                reply = self._receive(deadline_s)
            except BaseException:  # Its late reply must not answer the next call.
                self.close()
                raise
        if "error" in reply:
            raise GraderError(Status.VERIFIER_ERROR, str(reply["error"]))
        return reply["value"]

    def close(self) -> None:
        """Kill the child; a later call starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(OSError):
                    pipe.close()
            process.wait()

    def _start(self) -> None:
        self.close()
        code = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from k2rl_rewards.grader import serve; serve(sys.argv[2])"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(sys.path), self.factory],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C stops the run, which then stops its graders.
        )
        self._receive(self.start_s)

    def _send(self, job: Mapping[str, object]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise GraderError(Status.VERIFIER_ERROR, f"the grader's process is gone: {error}") from None

    def _receive(self, deadline_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        if not wait([self._process.stdout.fileno()], timeout=deadline_s):
            raise GraderError(Status.TIMEOUT, f"no finding within {deadline_s:g} s")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise GraderError(Status.VERIFIER_ERROR, f"the grader's process ended with code {code}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _forget(self) -> None:
        """In a forked child: the parent's grader, and a lock it may hold, are not ours."""
        self._process, self._lock = None, threading.Lock()


def serve(factory: str) -> None:
    """The child's loop: read a job, answer it, until the parent closes the pipe."""
    import resource
    import signal

    with os.fdopen(os.dup(0), "rb") as jobs, os.fdopen(os.dup(1), "wb") as replies:
        module, _, name = factory.partition(":")
        answer = getattr(importlib.import_module(module), name)()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # What the graded code reads or prints must not mix with the replies.
            os.dup2(null, stream)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        replies.write(b"{}\n")
        replies.flush()
        for line in jobs:
            job = json.loads(line)
            # The kernel ends a child whose parent died before it could kill it.
            signal.setitimer(signal.ITIMER_REAL, job["deadline_s"] + 2.0)
            try:
                reply = {"value": answer(*job["args"])}
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"[:300]}
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()
