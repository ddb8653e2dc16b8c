"""An engine in a process of its own, and the talk with it.

The child reads messages `(name, arguments)` and answers each but `submit` with `("ok", result)`; while samples run it
steps between messages and sends `("done", completions)`. What goes wrong there arrives as `("error", text)`. It ends
when the parent's end of the line is closed, however that came about.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

from k2rl.engines.vllm_engine import Engine, EngineConfig
from k2rl.errors import RunError
from k2rl.protocols import Completion

_TICK = 1.0
_TAIL = 8
_PATIENCE_S = 20
"""Seconds a process has to end by itself."""


class EngineProcess:
    """The parent's side, which exists when the engine answers: tens of seconds.

    Args:
        module: what the child runs: `main` of this one, or of another that ends in `serve`.

    Raises:
        RunError: the process has ended, or reports an error; with the last lines it wrote.
    """

    def __init__(self, config: EngineConfig, module: str = "k2rl.engines.process") -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                # An interrupt at the terminal is the parent's to handle.
                start_new_session=True,
            )
        self._line = Connection(os.dup(self._socket.fileno()))
        self._done: list[Completion] = []
        # Read all the time: with both ends waiting to write, neither would read.
        self._inbox: queue.SimpleQueue[tuple[str, Any] | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True, name="k2rl-engine")
        self._reader.start()
        try:
            self._send(config)
            self._answer()
        except BaseException:
            self.close()
            raise

    def tell(self, name: str, *arguments: Any) -> None:
        """Send what has no answer."""
        self._send((name, arguments))

    def ask(self, name: str, *arguments: Any) -> Any:
        self._send((name, arguments))
        return self._answer()

    def completions(self, wait_s: float) -> list[Completion]:
        """What has finished since the last call; waits so long for something where nothing has."""
        if not self._done:
            self._receive(wait_s)
        while self._receive(0.0):
            pass
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End the process: it leaves when its line is closed."""
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

    @property
    def pid(self) -> int:
        return self._child.pid

    # --- inside ------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while True:
                self._inbox.put(self._line.recv())
        except (EOFError, OSError):
            self._inbox.put(None)

    def _send(self, message: object) -> None:
        try:
            self._line.send(message)
        except OSError:
            # What it said before it went is in the inbox, if anything.
            while self._receive(_TICK) is not None:
                pass
            raise self._ended() from None

    def _answer(self) -> Any:
        while True:
            answer = self._receive(_TICK)
            if answer is not None and answer[0] == "ok":
                return answer[1]

    def _receive(self, wait_s: float) -> tuple[str, Any] | None:
        """The next message, within so many seconds; completions are put aside."""
        try:
            message = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
        except queue.Empty:
            return None
        if message is None:
            self._inbox.put(None)  # For the next who asks.
            raise self._ended()
        kind, content = message
        if kind == "error":
            raise RunError(f"vLLM engine: {content}")
        if kind == "done":
            self._done += content
        return kind, content

    def _ended(self) -> RunError:
        try:
            code: object = self._child.wait(5)
        except subprocess.TimeoutExpired:
            code = "none yet"
        self._log.seek(0)
        tail = "\n".join(self._log.read().decode(errors="replace").splitlines()[-_TAIL:])
        return RunError(f"the vLLM engine has ended (exit code {code}); the last it wrote:\n{tail}")


class _ParentGoneError(Exception):
    """Nobody is left to be told anything."""


def serve(line: Connection, kind: type[Engine]) -> None:
    """The child's side."""
    engine = kind(_heard(line))
    _say(line, "ok", None)
    while True:
        if engine.busy and not line.poll():
            if done := engine.step():
                _say(line, "done", done)
            continue
        name, arguments = _heard(line)
        result = getattr(engine, name)(*arguments)
        if name != "submit":
            _say(line, "ok", result)


def _heard(line: Connection) -> Any:
    try:
        return line.recv()
    except (EOFError, OSError):
        raise _ParentGoneError from None


def _say(line: Connection, kind: str, content: object) -> None:
    try:
        line.send((kind, content))
    except OSError:
        raise _ParentGoneError from None


def main(kind: type[Engine] = Engine) -> None:
    """Serve until the parent is gone. vLLM's threads would keep the process from a normal end."""
    line = Connection(int(sys.argv[1]))
    code = 0
    try:
        serve(line, kind)
    except _ParentGoneError:
        pass
    except BaseException as error:
        code = 1
        traceback.print_exc()
        with contextlib.suppress(_ParentGoneError):
            _say(line, "error", f"{type(error).__name__}: {error}")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
