"""From a place to a sandbox: `local`, `landlock`, `unsafe`, `http://host:port`, `fusion+http://host:port`."""

from __future__ import annotations

import atexit
import os
import threading

from k2rl.errors import UserError
from k2rl.protocols import Sandbox

_open: dict[str, Sandbox] = {}
_lock = threading.Lock()

PLACES = (
    "local (the strongest jail this machine has)",
    "landlock (a weaker one, even where a strong one can be had)",
    "unsafe (no jail)",
    "http://host:port (`k2rl sandbox serve`)",
    "fusion+http://host:port (SandboxFusion)",
)


def connect(where: str = "local") -> Sandbox:
    """The sandbox at a place, one for all who ask in this process.

    Raises:
        UserError: no such place, or nobody answers at that address: whoever names one is not content without it.
        UnavailableError: no jail can be had on this machine.
    """
    with _lock:
        if where not in _open:
            _open[where] = _connect(where)
        return _open[where]


def _connect(where: str) -> Sandbox:
    if where in ("local", "landlock", "unsafe"):
        from k2rl.sandbox.local import LocalSandbox

        return LocalSandbox(None if where == "local" else where)
    kind, separator, rest = str(where).partition("http")  # a recipe may hold a number here
    if separator and rest.partition("://")[0] in ("", "s") and "://" in rest:
        from k2rl.sandbox import remote

        if kind == "":
            return remote.RemoteSandbox(where)
        if kind == "fusion+":
            return remote.FusionSandbox(separator + rest)
    raise UserError(f"no sandbox {where!r}: allowed are {', '.join(PLACES)}")


def _close_all() -> None:
    for sandbox in _open.values():
        sandbox.close()
    _open.clear()


def _forget() -> None:
    """In a forked child: the parent's jails are not ours."""
    global _lock
    _lock = threading.Lock()
    _open.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget)
