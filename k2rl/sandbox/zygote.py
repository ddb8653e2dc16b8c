"""The fork server: a small process in its jail that forks one confined child per program.

It never reads what a program or a test says: the file descriptors a child reads from and writes to are handed through.
Single-threaded, standard library only, its modules loaded before the first fork. Orders come on file descriptor 0, a
socket of packets:

    `{"id", "cpu_s", "memory_mb"}` with file descriptors: fork a child that has them as 0, 1, 2, …
    `{"kill": id}`: end it. Every child that has ended is reported: `{"id", "status", "cpu_s", "memory_mb"}`.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from typing import NoReturn

from k2rl.sandbox import child
from k2rl.sandbox import syscalls as sc
from k2rl.sandbox.jail import Caps, Jail

READY = b"ready"
FAILED = 70

# What programs import often: loaded once, before the first fork.
PRELOADED = """
    abc array bisect calendar cmath collections copy dataclasses datetime decimal enum fractions functools hashlib heapq
    inspect itertools math operator queue random re statistics string struct textwrap threading time traceback typing
"""


def main(level: str) -> None:
    """Serve until the other end of the socket is closed."""
    control = socket.socket(fileno=0)
    try:
        jail = Jail(level)
        jail.enter()
    except Exception as error:
        control.send(str(getattr(error, "strerror", None) or error)[:500].encode())
        return
    if level == "full" and (inner := os.fork()):
        control.close()
        os.waitpid(inner, 0)
        return
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in PRELOADED.split():
        importlib.import_module(name)
    for name in ("exit", "quit"):  # as `site` has them, which is left out for its cost
        setattr(builtins, name, _sitebuiltins.Quitter(name, "the end of input"))
    sys.argv = ["program.py"]
    gc.disable()
    gc.freeze()  # or the children's collections would copy its pages
    control.send(READY)
    _serve(control, jail)


def _serve(control: socket.socket, jail: Jail) -> None:
    children: dict[int, tuple[int, int]] = {}  # pidfd -> id, pid
    poll = select.poll()
    poll.register(control.fileno(), select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd != control.fileno():
                poll.unregister(fd)
                number, pid = children.pop(fd)
                _report(control, number, pid)
                os.close(fd)
                continue
            message, fds, _, _ = socket.recv_fds(control, 4096, 8)
            if not message:
                return
            order = json.loads(message)
            if "kill" in order:
                for pidfd, (number, _pid) in children.items():
                    if number == order["kill"]:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                continue
            pid, pidfd = sc.clone(jail.namespaces)
            if pid == 0:
                _become_child(jail, Caps(order["cpu_s"], order["memory_mb"]), fds)
            for handed in fds:
                os.close(handed)
            children[pidfd] = (order["id"], pid)
            poll.register(pidfd, select.POLLIN)


def _report(control: socket.socket, number: int, pid: int) -> None:
    _, status, usage = os.wait4(pid, 0)
    control.send(
        json.dumps(
            {
                "id": number,
                "status": os.waitstatus_to_exitcode(status),
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "memory_mb": usage.ru_maxrss / 1024,
            }
        ).encode()
    )


def _become_child(jail: Jail, caps: Caps, fds: list[int]) -> NoReturn:
    """Never returns, whatever happens. Exit code `FAILED`: the jail could not be closed (or the program says so)."""
    code = FAILED
    try:
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 32) for fd in fds]
        for target, fd in enumerate(high):
            os.dup2(fd, target)
        jail.close_others(len(fds))
        try:
            jail.confine(caps)
        except Exception as error:
            os.write(child.RESULT, child.frame(b"j", str(error).encode()))
            os._exit(FAILED)
        code = 1
        gc.enable()
        code = child.run()
    finally:
        os._exit(code)
