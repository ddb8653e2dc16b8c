"""Every random draw, keyed.

A draw is seeded by hash(seed, purpose, iteration, task id, k, turn, …): it depends on what it is for, never
on which worker made it, in what order, or how many draws came before. Checkpoints need no generator state.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1


def key(*parts: str | int | float) -> int:
    """A 64-bit key for a draw, stable across processes, machines and Python versions."""
    # NumPy's scalars print differently from Python's, and from one NumPy version to the next.
    text = "\x1f".join(repr(p.item() if isinstance(p, np.generic) else p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def generator(*parts: str | int | float) -> np.random.Generator:
    """A NumPy generator for the draw named by `parts`."""
    return np.random.Generator(np.random.PCG64(key(*parts)))


def uniforms(keys_S: NDArray[np.uint64], positions_S: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One uniform in [0, 1) for each (key, position): the position-th output of splitmix64 seeded by the key.

    Counter-based, so a token's draw does not depend on the other rows of its batch.
    """
    with np.errstate(over="ignore"):
        z = keys_S + (positions_S + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    uniforms_S: NDArray[np.float64] = (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniforms_S


def in_test_split(*parts: str | int | float, share: float = 0.2) -> bool:
    """Whether a generated item belongs to the test split: decided by its content alone, so that the
    splits can't overlap whatever the seed."""
    return key("split", *parts) / (_MASK + 1) < share
