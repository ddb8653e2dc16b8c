"""A worker in a child process of this machine.

The child reads messages `(method, arguments, answered)` and answers with `("ok", result)`; while its object is busy it
steps between messages and sends `("produced", [...])`, or at least a `("beat", None)` now and then. What goes wrong
there arrives as `("error", …)`. It ends when the parent's end of the line is closed, however that came about.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

from k2rl.cluster.worker import Job, WorkerGoneError
from k2rl.errors import RunError, UserError

_TICK = 1.0
_BEAT_S = 5.0
_TAIL, _STACKS = 8, 60
"""Lines of the log that an error quotes."""
_PATIENCE_S = 20
"""Seconds a process has to end by itself, or to write its stacks."""


class ChildProcess:
    """The parent's side, which exists when the object does: tens of seconds for an engine.

    Raises:
        WorkerGoneError: the process has ended; with the last lines it wrote.
        UserError, RunError: what the object's constructor raised.
    """

    machine = ""
    address = "127.0.0.1"

    def __init__(self, job: Job) -> None:
        self.job = job
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "k2rl.cluster.child", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env={**os.environ, **job.environment},
                # An interrupt at the terminal is the parent's to handle.
                start_new_session=True,
            )
        self.pid = self._child.pid
        self._line = Connection(os.dup(self._socket.fileno()))
        self._results: deque[Any] = deque()
        self._produced: list[Any] = []
        self._heard = time.monotonic()
        # Read all the time: with both ends waiting to write, neither would read.
        self._inbox: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True, name="k2rl-worker")
        self._reader.start()
        try:
            self._say(job)
            self.receive()
        except BaseException:
            self.close()
            raise

    def shared(self, value: Any) -> Any:
        return value

    def neighbour(self, job: Job) -> ChildProcess:
        return ChildProcess(job)

    def send(self, method: str, *arguments: Any) -> None:
        self._say((method, arguments, True))

    def tell(self, method: str, *arguments: Any) -> None:
        self._say((method, arguments, False))

    def receive(self) -> Any:
        while not self._results:
            self._take(_TICK)
        return self._results.popleft()

    def produced(self, wait_s: float) -> list[Any]:
        if not self._produced:
            self._take(wait_s)
        while self._take(0.0):
            pass
        made, self._produced = self._produced, []
        return made

    def close(self, at_once: bool = False) -> None:
        """End the process: it leaves when its line is closed."""
        if at_once:
            self._child.kill()
        if self._socket.fileno() >= 0:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        try:
            self._child.wait(_PATIENCE_S)
        except BaseException as error:
            self._child.kill()
            self._child.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        finally:
            self._reader.join()
            self._line.close()
            self._log.close()

    # --- inside ------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while True:
                self._inbox.put(pickle.loads(self._line.recv_bytes()))
        except (EOFError, OSError):
            self._inbox.put(None)

    def _say(self, message: object) -> None:
        self._heard = time.monotonic()
        try:
            self._line.send_bytes(_packed(message))
        except OSError:
            # What it said before it went is in the inbox, if anything.
            while self._take(_TICK):
                pass
            raise self._ended() from None

    def _take(self, wait_s: float) -> bool:
        """Take in the next message, within so many seconds; whether there was one."""
        try:
            message = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
        except queue.Empty:
            if wait_s and time.monotonic() - self._heard > self.job.hang_s + _PATIENCE_S:
                raise WorkerGoneError(
                    f"{self.job.name} has given no sign of life for {self.job.hang_s:g} s; where it is:\n"
                    f"{self._tail(_STACKS)}"
                ) from None
            return False
        if message is None:
            self._inbox.put(None)  # For the next who asks.
            raise self._ended()
        self._heard = time.monotonic()
        kind, content = message
        if kind == "error":
            of_user, text = content
            raise UserError(text) if of_user else RunError(text)
        if kind == "ok":
            self._results.append(content)
        elif kind == "produced":
            self._produced += content
        return True

    def _ended(self) -> WorkerGoneError:
        try:
            code: object = self._child.wait(5)
        except subprocess.TimeoutExpired:
            code = "none yet"
        return WorkerGoneError(f"{self.job.name} has ended (exit code {code}); the last it wrote:\n{self._tail(_TAIL)}")

    def _tail(self, lines: int) -> str:
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-lines:])


class _ParentGoneError(Exception):
    """Nobody is left to be told anything."""


def _serve(line: Connection) -> None:
    """The child's side."""
    job: Job = _heard(line)
    job.watch()
    try:
        hosted = job.make()
        _say(line, "ok", None)
        _work(line, job, hosted)
    except _ParentGoneError:
        raise
    except BaseException as error:
        traceback.print_exc()
        _say(line, "error", job.error(error))
        raise


def _work(line: Connection, job: Job, hosted: Any) -> None:
    beat = time.monotonic()
    while True:
        if getattr(hosted, "busy", False) and not line.poll():
            if made := hosted.step():
                _say(line, "produced", made)
            if time.monotonic() - beat > _BEAT_S:
                _say(line, "beat", None)
                job.watch()
                beat = time.monotonic()
            continue
        faulthandler.cancel_dump_traceback_later()
        method, arguments, answered = _heard(line)
        job.watch()
        beat = time.monotonic()
        result = getattr(hosted, method)(*arguments)
        if answered:
            _say(line, "ok", result)


def _packed(message: object) -> bytes:
    """By plain pickle: a `Connection` would send tensors as files to be fetched, which the other end may not."""
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def _heard(line: Connection) -> Any:
    try:
        return pickle.loads(line.recv_bytes())
    except (EOFError, OSError):
        raise _ParentGoneError from None


def _say(line: Connection, kind: str, content: object) -> None:
    try:
        line.send_bytes(_packed((kind, content)))
    except OSError:
        raise _ParentGoneError from None


def main() -> None:
    """Serve until the parent is gone. What a worker hosts may keep threads that would prevent a normal end."""
    code = 0
    with contextlib.suppress(_ParentGoneError):
        try:
            _serve(Connection(int(sys.argv[1])))
        except _ParentGoneError:
            raise
        except BaseException:
            code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
