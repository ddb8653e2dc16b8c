"""Texts that are the same: exactly, but for case, spacing and Unicode forms, or nearly.

Near ones are found by MinHash (Broder 1997): 128 minima over hashed 3-word shingles, in 32 bands of 4, propose pairs,
and the Jaccard similarity of the shingles themselves decides. At a threshold of 0.7 hardly a pair is missed (the chance
is below 0.02 %), at 0.5 one in eight. Texts with different numbers are never near: most problems that differ in nothing
else are different problems.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from k2rl import rng

LEAST_NEAR = 0.5
_SHINGLE, _HASHES, _BANDS = 3, 128, 32
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Twin:
    """Text `at` is the same as the earlier `of`, in this way: exact, normalised, or near with its `similarity`."""

    at: int
    of: int
    how: str
    similarity: float = 1.0


def normalised(text: str) -> str:
    """Without what case, spacing and Unicode forms tell apart."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def twins(
    texts: Sequence[str], also: Sequence[Hashable] | None = None, near: float | None = None, known: int = 0
) -> list[Twin]:
    """Every text that an earlier one makes superfluous.

    Args:
        also: what must be equal besides the text (the tests of a program), one per text.
        near: the least Jaccard similarity of near ones; None: only exact and normalised ones.
        known: so many texts at the beginning are there to be compared with, and are not compared themselves.
    """
    beside: Sequence[Hashable] = [None] * len(texts) if also is None else also
    exact: dict[Hashable, int] = {}
    loose: dict[Hashable, int] = {}
    index = _Index(near) if near is not None else None
    found = []
    for at, (text, rest) in enumerate(zip(texts, beside, strict=True)):
        plain = normalised(text)
        twin = None
        if at >= known:
            if (of := exact.get((text, rest))) is not None:
                twin = Twin(at, of, "exact")
            elif (of := loose.get((plain, rest))) is not None:
                twin = Twin(at, of, "normalised")
            elif index is not None:
                twin = index.nearest(at, plain, rest)
        if twin is not None:
            found.append(twin)
            continue
        exact.setdefault((text, rest), at)
        loose.setdefault((plain, rest), at)
        if index is not None:
            index.add(at, plain, rest)
    return found


class _Index:
    """The texts kept so far, by the bands of their minima."""

    def __init__(self, least: float) -> None:
        self.least = least
        draw = rng.generator("minhash")
        self.odd_H = draw.integers(0, 2**63, size=_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self.plus_H = draw.integers(0, 2**63, size=_HASHES, dtype=np.uint64)
        self.bands: dict[tuple[int, bytes], list[int]] = {}
        self.shingles: dict[int, frozenset[int]] = {}
        self.last: tuple[int, list[tuple[int, bytes]], frozenset[int]] = (-1, [], frozenset())

    def nearest(self, at: int, text: str, rest: Hashable) -> Twin | None:
        """The most similar text kept, if it is similar enough."""
        keys, shingles = self._keys(at, text, rest)
        candidates = {other for key in keys for other in self.bands.get(key, ())}
        best = max(((_jaccard(shingles, self.shingles[c]), -c) for c in candidates), default=(0.0, 0))
        return Twin(at, -best[1], "near", best[0]) if best[0] >= self.least else None

    def add(self, at: int, text: str, rest: Hashable) -> None:
        keys, shingles = self._keys(at, text, rest)
        self.shingles[at] = shingles
        for key in keys:
            self.bands.setdefault(key, []).append(at)

    def _keys(self, at: int, text: str, rest: Hashable) -> tuple[list[tuple[int, bytes]], frozenset[int]]:
        """The keys under which a text is kept, and its shingles. What is beside it and its numbers are part of the key:
        texts that differ in them never meet."""
        if self.last[0] != at:
            words = _WORD.findall(text)
            grams = [" ".join(words[i : i + _SHINGLE]) for i in range(max(1, len(words) - _SHINGLE + 1))]
            shingles = frozenset(_hash(gram) for gram in grams)
            salt = repr((rest, sorted(_NUMBER.findall(text)))).encode("utf-8", "surrogatepass")
            rows = self._minima(shingles).reshape(_BANDS, -1)
            keys = [(n, hashlib.blake2b(row.tobytes() + salt, digest_size=8).digest()) for n, row in enumerate(rows)]
            keys = keys if words else []  # Without a word there is nothing to be near to.
            self.last = (at, keys, shingles)
        return self.last[1], self.last[2]

    def _minima(self, shingles: frozenset[int]) -> NDArray[np.uint64]:
        hashed_N = np.fromiter(shingles, dtype=np.uint64, count=len(shingles))
        with np.errstate(over="ignore"):
            mixed_HN = self.odd_H[:, None] * hashed_N + self.plus_H[:, None]
            mixed_HN ^= mixed_HN >> np.uint64(32)
        minima_H: NDArray[np.uint64] = mixed_HN.min(axis=1)
        return minima_H


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _jaccard(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b)
