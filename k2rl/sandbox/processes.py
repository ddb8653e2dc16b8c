"""A zygote seen from outside: start it, hand it programs, watch their pipes and clocks, and survive its death."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from k2rl.protocols import Limits
from k2rl.sandbox import zygote

_START_S, _END_S = 30.0, 5.0
_SEALS = 0x0001 | 0x0002 | 0x0004 | 0x0008  # no more seals, no shrinking, growing, writing

# A package of this name without its __init__, which imports much that a zygote must not carry.
_LAUNCH = (
    "import sys, types; k2rl = types.ModuleType('k2rl'); k2rl.__path__ = [sys.argv[1]]; sys.modules['k2rl'] = k2rl; "
    "from k2rl.sandbox import zygote; zygote.main(sys.argv[2])"
)


class ZygoteError(Exception):
    """The zygote can't be started, died, or does not answer."""


@dataclass
class Child:
    """One confined process: what it is given, what is read of it, how it ended.

    `fds` become its file descriptors 0, 1, 2, …; `reads` are our ends of its pipes.
    """

    fds: Sequence[int]
    reads: Sequence[int] = ()
    output: dict[int, bytearray] = field(default_factory=dict)
    status: int | None = None
    cpu_s: float = 0.0
    overflow: bool = False
    late: bool = False


def file_of(data: bytes) -> int:
    """A read-only file in memory."""
    fd = os.memfd_create("job", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, 1033, _SEALS)  # F_ADD_SEALS
    except OSError:
        os.close(fd)
        raise
    return fd


class Zygote:
    """One fork server at a level. For one thread at a time.

    Raises:
        ZygoteError: it can't be started here; the message is its own reason.
    """

    def __init__(self, level: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        package = Path(__file__).resolve().parent.parent
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-P", "-c", _LAUNCH, str(package), level],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONHASHSEED": "0", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"},
                start_new_session=True,
            )
        self._control = ours
        self._number = 0
        ours.settimeout(_START_S)
        try:
            said = ours.recv(1000)
        except TimeoutError:
            said = b"no answer from the fork server"
        if said != zygote.READY:
            self.close()
            raise ZygoteError(said.decode("utf-8", "replace") or "the fork server ended at once")

    def run(self, children: Sequence[Child], limits: Limits) -> None:
        """Run children side by side until the first one, and then the others, ended; fills in what became of them.

        Raises:
            ZygoteError: it died or does not answer.
        """
        deadline = time.monotonic() + limits.wall_s
        running: dict[int, Child] = {}
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        readers: dict[int, Child] = {}
        try:
            for child in children:
                self._number += 1
                order = {"id": self._number, "cpu_s": limits.cpu_s, "memory_mb": limits.memory_mb}
                try:
                    socket.send_fds(self._control, [json.dumps(order).encode()], list(child.fds))
                except OSError as error:
                    raise ZygoteError(f"the fork server is gone: {error.strerror}") from None
                running[self._number] = child
        finally:
            for fd in {fd for child in children for fd in child.fds}:
                os.close(fd)
        for child in children:
            for fd in child.reads:
                child.output[fd] = bytearray()
                readers[fd] = child
                poll.register(fd, select.POLLIN)
        killed = False
        while running or readers:
            left = deadline - time.monotonic()
            events = poll.poll(max(0.0, left) * 1000)
            if not events:
                if killed:
                    raise ZygoteError("the fork server does not answer")
                killed = True
                deadline = time.monotonic() + _END_S
                for number, child in running.items():
                    child.late = True
                    self._kill(number)
            for fd, _ in events:
                if fd == self._control.fileno():
                    number, ended = self._ended(running)
                    del running[number]
                    if ended is children[0]:
                        for other in running:
                            self._kill(other)
                    continue
                child = readers[fd]
                data = os.read(fd, 1 << 16)
                child.output[fd] += data
                if not data or len(child.output[fd]) > limits.output_bytes:
                    poll.unregister(fd)
                    del readers[fd]
                    if data:
                        child.overflow = True
                        for number in [n for n, c in running.items() if c is child]:
                            self._kill(number)

    def _ended(self, running: dict[int, Child]) -> tuple[int, Child]:
        try:
            message = self._control.recv(4096)
        except OSError as error:
            raise ZygoteError(f"the fork server is gone: {error.strerror}") from None
        if not message:
            raise ZygoteError("the fork server died")
        report = json.loads(message)
        child = running[report["id"]]
        child.status, child.cpu_s = report["status"], report["cpu_s"]
        return report["id"], child

    def _kill(self, number: int) -> None:
        with contextlib.suppress(OSError):  # its death shows in the next read
            self._control.send(json.dumps({"kill": number}).encode())

    def close(self) -> None:
        """End it and every child of it."""
        self.forget()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def forget(self) -> None:
        """In a forked process: it is the other one's. While this end is open, it does not see the other's death."""
        self._control.close()
