"""Weights from one process to another of the same machine: a block of shared memory, filled again and again.

    with Outbox(bucket_bytes) as outbox:
        for bucket in outbox.fill(named_tensors):   # what the block holds now, until the next one is asked for
            receiver.load(read(bucket))             # in the other process

The block stays mapped between updates: a file of the same size would cost ten times the copy.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from types import TracebackType
from typing import Protocol, runtime_checkable

import torch

from k2rl.errors import RunError

BUCKET = 512 << 20
"""Bytes of weights under way at a time."""
_ALIGNED = 64
_SHM = "/dev/shm"


@dataclass(frozen=True)
class Entry:
    """A tensor in the block: its name, the name of its dtype, its shape, the byte it begins at."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Bucket:
    """What a block holds at a time."""

    block: str
    entries: tuple[Entry, ...]


@runtime_checkable
class Bucketed(Protocol):
    """Weights that another process has put into shared memory already."""

    def buckets(self) -> Iterator[Bucket]:
        """All of them; what was there before is gone when the next one is asked for."""


class Outbox:
    """The sender's end. It owns the block, which grows where a single tensor is larger.

    Args:
        bucket_bytes: the block's size; half of what the machine has left at most, which is `bytes`.

    Raises:
        RunError: a tensor is larger than the shared memory that is left, as in a container with a small /dev/shm.
    """

    def __init__(self, bucket_bytes: int) -> None:
        self.bytes = max(min(bucket_bytes, _left() // 2), 1)
        self._block: SharedMemory | None = None

    def fill(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Bucket]:
        """All tensors, as many at a time as fit. What was filled before is gone when the next one is asked for."""
        entries, end = list[Entry](), 0
        for name, tensor in named_tensors:
            start = -(-end // _ALIGNED) * _ALIGNED
            size = tensor.numel() * tensor.element_size()
            if entries and start + size > self._room(0):
                yield Bucket(self._opened(0).name, tuple(entries))
                entries, start = [], 0
            block = self._opened(start + size)
            entry = Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), start)
            _view(block, entry).copy_(tensor.detach())
            entries.append(entry)
            end = start + size
        if entries:
            yield Bucket(self._opened(0).name, tuple(entries))

    def close(self) -> None:
        if self._block is not None:
            self._block.close()
            self._block.unlink()
            self._block = None

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _room(self, needed: int) -> int:
        return max(self.bytes, needed, self._block.size if self._block else 0)

    def _opened(self, needed: int) -> SharedMemory:
        if self._block is None or self._block.size < needed:
            self.close()
            size = self._room(needed)
            # Beyond what is left a write would kill the process.
            if size > _left():
                raise RunError(
                    f"{size >> 20} MiB of shared memory are needed for a tensor, {_left() >> 20} MiB are left"
                )
            self._block = SharedMemory(create=True, size=size)
        return self._block


class Inbox:
    """The receiver's end: blocks it has been told of, the last one kept mapped."""

    def __init__(self) -> None:
        self._block: SharedMemory | None = None

    def read(self, bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a bucket, as views of the block: to be copied before the sender goes on."""
        if self._block is None or self._block.name != bucket.block:
            self.close()
            # The sender unlinks it; a tracker of this process would do so too, and warn.
            self._block = _attached(bucket.block)
        for entry in bucket.entries:
            yield entry.name, _view(self._block, entry)

    def close(self) -> None:
        if self._block is not None:
            self._block.close()
            self._block = None


def _left() -> int:
    """Bytes of shared memory that are free; where it is no file system, what a block may have is not known before."""
    return shutil.disk_usage(_SHM).free if os.path.isdir(_SHM) else 1 << 62


def _view(block: SharedMemory, entry: Entry) -> torch.Tensor:
    dtype = getattr(torch, entry.dtype)
    if not prod(entry.shape):
        return torch.empty(entry.shape, dtype=dtype)
    flat = torch.frombuffer(block.buf, dtype=dtype, count=prod(entry.shape), offset=entry.offset)
    return flat.view(entry.shape)


def _attached(name: str) -> SharedMemory:
    block = SharedMemory(name=name)
    resource_tracker.unregister(f"/{name}", "shared_memory")
    return block
