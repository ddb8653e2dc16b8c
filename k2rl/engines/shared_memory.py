"""Weights from one process to another of the same machine: two blocks of shared memory, filled in turn.

    with Outbox(bucket_bytes) as outbox:
        for bucket in outbox.fill(named_tensors):   # what a block holds now, until the next but one is asked for
            receiver.load(read(bucket))             # in the other process, while the other block is filled

The blocks stay mapped between updates: a file of the same size would cost ten times the copy.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

BUCKET = 64 << 20
"""Bytes of weights that are sent at a time: so few that both ends are busy soon."""
_ALIGNED = 64
_BLOCKS = 2
_NAME = "k2rl"


@dataclass(frozen=True)
class Entry:
    """A tensor in the block: its name, the name of its dtype, its shape, the byte it begins at."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return self.offset + prod(self.shape) * dtype.itemsize


@dataclass(frozen=True)
class Bucket:
    """What a block holds at a time."""

    block: str
    entries: tuple[Entry, ...]


@runtime_checkable
class Bucketed(Protocol):
    """Weights that another process has put into shared memory already."""

    def buckets(self) -> Iterator[Bucket]:
        """All of them; one is gone when the next but one is asked for."""


class Outbox:
    """The sender's end. It owns the blocks, which grow where a single tensor is larger.

    Args:
        bucket_bytes: the size of a block.
    """

    def __init__(self, bucket_bytes: int) -> None:
        self.bytes = bucket_bytes
        self._blocks: list[_Block | None] = [None] * _BLOCKS
        self._turn = 0

    def fill(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Bucket]:
        """All tensors, as many at a time as fit; one larger than that by itself.

        What was filled is gone when the next bucket but one is asked for, in this call or another.
        """
        entries, end = list[Entry](), 0
        for name, tensor in named_tensors:
            start = -(-end // _ALIGNED) * _ALIGNED
            size = tensor.numel() * tensor.element_size()
            if entries and start + size > self.bytes:
                yield self._filled(entries)
                entries, start = [], 0
            block = self._opened(start + size)
            entry = Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), start)
            block.view(entry).copy_(tensor.detach())
            entries.append(entry)
            end = start + size
        if entries:
            yield self._filled(entries)

    def lay(self, tensors: Iterable[tuple[str, torch.dtype, Sequence[int]]]) -> Bucket:
        """One bucket with room for all of these, to be filled by whoever has them (`views`, `Inbox.read`)."""
        entries, end = list[Entry](), 0
        for name, dtype, shape in tensors:
            start = -(-end // _ALIGNED) * _ALIGNED
            entries.append(Entry(name, str(dtype).removeprefix("torch."), tuple(shape), start))
            end = start + prod(shape) * dtype.itemsize
        self._opened(end)
        return self._filled(entries)

    def put(self, entries: Sequence[Entry], content: NDArray[np.uint8]) -> Bucket:
        """A bucket of another outbox, by its bytes (`Inbox.content`)."""
        self._opened(content.size).content(content.size)[:] = content
        return self._filled(list(entries))

    def views(self, bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a bucket, in its block."""
        (block,) = (b for b in self._blocks if b is not None and b.name == bucket.block)
        return ((entry.name, block.view(entry)) for entry in bucket.entries)

    def close(self) -> None:
        for turn in range(_BLOCKS):
            self._give_back(turn)

    def __enter__(self) -> Outbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def _filled(self, entries: list[Entry]) -> Bucket:
        """What the block at hand holds; the other one is next."""
        block = self._opened(0)
        self._turn = (self._turn + 1) % _BLOCKS
        return Bucket(block.name, tuple(entries))

    def _opened(self, needed: int) -> _Block:
        block = self._blocks[self._turn]
        if block is None or block.size < needed:
            self._give_back(self._turn)
            block = self._blocks[self._turn] = _Block.made(max(self.bytes, needed))
        return block

    def _give_back(self, turn: int) -> None:
        if (block := self._blocks[turn]) is not None:
            block.close()
            self._blocks[turn] = None


class Inbox:
    """The receiver's end: blocks it has been told of, the last ones kept mapped."""

    def __init__(self) -> None:
        self._blocks: dict[str, _Block] = {}

    def read(self, bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a bucket, as views of its block: to be copied before the sender is done with the next one."""
        block = self._block(bucket)
        for entry in bucket.entries:
            yield entry.name, block.view(entry)

    def content(self, bucket: Bucket) -> NDArray[np.uint8]:
        """The bytes of a bucket as a view of its block, good as long as those of `read`."""
        return self._block(bucket).content(max((entry.end for entry in bucket.entries), default=0))

    def close(self) -> None:
        while self._blocks:
            self._blocks.popitem()[1].close()

    def _block(self, bucket: Bucket) -> _Block:
        block = self._blocks.pop(bucket.block, None)
        if block is None:
            block = _Block.found(bucket.block)
        self._blocks[bucket.block] = block
        while len(self._blocks) > _BLOCKS:
            self._blocks.pop(next(iter(self._blocks))).close()
        return block


class _Block:
    """Mapped memory that has no name in a file system: it goes with the last process that has it, however that ends.

    Others find it as one of its owner's open files, `name` tells which.
    """

    def __init__(self, file: int, name: str) -> None:
        self._file, self.name, self.size = file, name, os.fstat(file).st_size
        self._map = mmap.mmap(file, self.size)

    @classmethod
    def made(cls, size: int) -> _Block:
        file = os.memfd_create(_NAME)
        os.ftruncate(file, size)
        return cls(file, f"{os.getpid()}/fd/{file} {os.fstat(file).st_ino}")

    @classmethod
    def found(cls, name: str) -> _Block:
        """Raises `FileNotFoundError` where it is not (any more): its owner has ended, or is on another machine."""
        path, _, number = name.partition(" ")
        # On another machine it may be anybody's file, which is not to be opened.
        if not os.readlink(f"/proc/{path}").startswith(f"/memfd:{_NAME}"):
            raise FileNotFoundError(name)
        file = os.open(f"/proc/{path}", os.O_RDWR)
        if os.fstat(file).st_ino != int(number):
            os.close(file)
            raise FileNotFoundError(name)
        return cls(file, name)

    def view(self, entry: Entry) -> torch.Tensor:
        dtype = getattr(torch, entry.dtype)
        if not prod(entry.shape):
            return torch.empty(entry.shape, dtype=dtype)
        flat = torch.frombuffer(self._map, dtype=dtype, count=prod(entry.shape), offset=entry.offset)
        return flat.view(entry.shape)

    def content(self, size: int) -> NDArray[np.uint8]:
        """The first bytes."""
        return np.frombuffer(self._map, dtype=np.uint8, count=size) if size else np.empty(0, dtype=np.uint8)

    def close(self) -> None:
        """Views that somebody still has keep their memory."""
        with suppress(BufferError):
            self._map.close()
        os.close(self._file)
