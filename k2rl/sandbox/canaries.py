"""Attacks tried on a jail before it is trusted: version numbers and flags promise, these show."""

from __future__ import annotations

from dataclasses import dataclass

from k2rl.protocols import Limits

STOPPED = "stopped"
LIMITS = Limits(cpu_s=2.0, wall_s=10.0, memory_mb=256, output_bytes=10_000)


@dataclass(frozen=True)
class Canary:
    """An attack: a program whose `attack()` returns "stopped" only if it was."""

    name: str
    program: str


def of(level: str) -> tuple[Canary, ...]:
    """The canaries that a level must stop; `honest` must work everywhere."""
    return (_HONEST,) if level == "unsafe" else (_HONEST, *_ATTACKS)


def _attack(name: str, body: str) -> Canary:
    lines = "\n".join(f"        {line}" for line in body.strip().splitlines())
    return Canary(
        name,
        f"""
def attack():
    import ctypes, os, socket, sys
    libc = ctypes.CDLL(None, use_errno=True)
    try:
{lines}
    except (OSError, ImportError):
        return "stopped"
    return "not stopped"
""",
    )


_HONEST = Canary(
    "an honest program runs",
    """
def attack():
    import json, queue, sqlite3, string, threading
    box = queue.Queue()
    threads = [threading.Thread(target=box.put, args=(i,)) for i in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    return "stopped" if sorted(box.get() for _ in range(3)) == [0, 1, 2] else "broken"
""",
)
_ATTACKS = (
    _attack("open a network socket", "socket.socket(socket.AF_INET, socket.SOCK_STREAM)"),
    _attack("open a unix socket", "socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)"),
    _attack("read /etc/passwd", "open('/etc/passwd').read()"),
    _attack("read another process", "os.listdir('/proc/1')\nopen('/proc/1/environ', 'rb').read()"),
    _attack("write outside the scratch folder", "open('/usr/k2rl-canary', 'w')"),
    _attack("fork", "if os.fork() == 0: os._exit(0)"),
    _attack("run another program", "os.posix_spawn('/usr/bin/true', ['true'], {})"),
    _attack("signal other processes", "os.kill(-1, 0)"),
    _attack("make a user namespace", "if libc.unshare(0x10000000) < 0: raise OSError"),
    _attack("trace a process", "if libc.ptrace(0, 0, None, None) < 0: raise OSError"),
)
