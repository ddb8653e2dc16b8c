"""Weights to engines on other machines: sent to each machine once, and put into shared memory there.

A bucket's bytes leave this process for a relay, a worker beside the engines, and lie there as they did here; engines
read them as if the sender were next to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from k2rl.cluster.worker import Job, Worker, WorkerGoneError, asked_each, close_all
from k2rl.engines.shared_memory import Bucket, Entry, Inbox, Outbox


class Relay:
    """What a relay hosts.

    Args:
        bucket_bytes: the size of its blocks, which grow like the sender's.
    """

    def __init__(self, bucket_bytes: int) -> None:
        self._outbox = Outbox(bucket_bytes)

    def put(self, entries: Sequence[Entry], content: NDArray[np.uint8]) -> Bucket:
        return self._outbox.put(entries, content)


class Relays:
    """The sender's side: a relay for each other machine, started when first needed.

    Args:
        bucket_bytes: the size of a relay's blocks.
    """

    def __init__(self, bucket_bytes: int) -> None:
        self._bytes, self._inbox = bucket_bytes, Inbox()
        self._relays: dict[str, Worker] = {}

    def at(self, engines: Sequence[Worker], bucket: Bucket) -> list[Bucket]:
        """A bucket of this machine as each of the engines finds it.

        Raises:
            WorkerGoneError: a relay is lost; others are started after `close`.
        """
        beside = dict[str, Worker]()
        for engine in engines:
            if engine.machine:
                beside.setdefault(engine.machine, engine)
        if not beside:
            return [bucket] * len(engines)
        for machine, engine in beside.items():
            if machine not in self._relays:
                job = Job(f"relay beside {engine.job.name}", "k2rl.engines.relay:Relay", self._bytes, engine.job.hang_s)
                self._relays[machine] = engine.neighbour(job)
        relays = [self._relays[machine] for machine in beside]
        message = (bucket.entries, relays[0].shared(self._inbox.content(bucket)))
        placed = dict(zip(beside, asked_each(relays, "put", [message] * len(relays))(), strict=True))
        return [placed.get(engine.machine, bucket) for engine in engines]

    def close(self) -> None:
        """End all; those that are lost have ended."""
        relays, self._relays = list(self._relays.values()), {}
        self._inbox.close()
        with suppress(WorkerGoneError):
            close_all(relays)
