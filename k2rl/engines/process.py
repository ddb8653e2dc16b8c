"""An engine in a process of its own, and the talk with it.

The child reads messages `(name, arguments)` and answers each but `submit` with `("ok", result)`; while samples run it
steps between messages and sends `("done", completions)`. What goes wrong there arrives as `("error", text)`. It ends
when the parent's end of the line is closed, however that came about.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from k2rl.engines.vllm_engine import Engine, EngineConfig
from k2rl.errors import RunError
from k2rl.protocols import Completion

_TICK = 1.0
_TAIL = 8


class EngineProcess:
    """The parent's side, which exists when the engine answers: tens of seconds.

    Args:
        module: what the child runs: `main` of this one, or of another that ends in `serve`.

    Raises:
        RunError: the process has ended, or reports an error; with the last lines it wrote.
    """

    def __init__(self, config: EngineConfig, module: str = "k2rl.engines.process") -> None:
        self._log = Path(tempfile.mkstemp(prefix="k2rl-engine-", suffix=".log")[1])
        mine, theirs = socket.socketpair()
        with self._log.open("wb") as log, theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._line = Connection(mine.detach())
        self._done: list[Completion] = []
        try:
            self._line.send(config)
            self._answer()
        except BaseException:
            self.close()
            raise

    def tell(self, name: str, *arguments: Any) -> None:
        """Send what has no answer."""
        self._send(name, arguments)

    def ask(self, name: str, *arguments: Any) -> Any:
        self._send(name, arguments)
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
        self._line.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        return self._child.pid

    # --- inside ------------------------------------------------------------------------------------------

    def _send(self, name: str, arguments: Sequence[Any]) -> None:
        try:
            self._line.send((name, tuple(arguments)))
        except OSError:
            raise self._ended() from None

    def _answer(self) -> Any:
        while True:
            answer = self._receive(_TICK)
            if answer is not None and answer[0] == "ok":
                return answer[1]

    def _receive(self, wait_s: float) -> tuple[str, Any] | None:
        """The next message, within so many seconds; completions are put aside."""
        try:
            if not self._line.poll(wait_s):
                return None
            kind, content = self._line.recv()
        except (EOFError, OSError):
            raise self._ended() from None
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
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL:])
        return RunError(f"the vLLM engine has ended (exit code {code}); the last it wrote:\n{tail}")


def serve(line: Connection, kind: type[Engine]) -> None:
    """The child's side."""
    engine = kind(line.recv())
    line.send(("ok", None))
    while True:
        if engine.busy and not line.poll():
            if done := engine.step():
                line.send(("done", done))
            continue
        name, arguments = line.recv()
        result = getattr(engine, name)(*arguments)
        if name != "submit":
            line.send(("ok", result))


def main(kind: type[Engine] = Engine) -> None:
    line = Connection(int(sys.argv[1]))
    try:
        serve(line, kind)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        # The parent is gone: nobody is left to be told. vLLM's own threads would keep the process.
        os._exit(0)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        line.send(("error", text))
        raise


if __name__ == "__main__":
    main()
