"""Running programs that nobody trusts: `connect()` gives a `protocols.Sandbox`.

`zygote.py` (fork server), `jail.py` and `syscalls.py` (what a child is locked into), `child.py`, `canonical.py` and
`rpc.py` (what it does there) need the standard library alone; `processes.py` and `local.py` are the trusted side;
`server.py` and `remote.py` put it behind HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from k2rl.protocols import Sandbox


def connect(where: str = "local") -> Sandbox:
    """The sandbox at `where`, one per process and place, started when first asked for; see `places.py`."""
    from k2rl.sandbox.places import connect as open_place

    return open_place(where)
