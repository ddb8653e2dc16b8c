"""The keys and values of all rows that decode at once, aligned at their newest column."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values: (slots, heads, columns, head size), rows 0..active-1 in use."""

    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        def room(like: torch.Tensor) -> torch.Tensor:
            _, heads, _, size = like.shape
            return like.new_zeros((self.cache.slots, heads, self.cache.columns, size))

        self.keys, self.values = room(key_states), room(value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, low, now = len(key_states), self.cache.low, self.cache.now
        keys, values = self.keys[:rows, :, low : now + 1], self.values[:rows, :, low : now + 1]
        keys[:, :, -1:] = key_states
        values[:, :, -1:] = value_states
        return keys, values

    def get_seq_length(self) -> int:
        return self.cache.now - self.cache.low

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):  # type: ignore[misc]
    """The rows' shared columns: `now` is where the next token goes, `low` the leftmost column in use."""

    def __init__(self, layers: int, slots: int, columns: int) -> None:
        self.slots, self.columns, self.now, self.low = slots, columns, 0, 0
        super().__init__(layers=[SlotLayer(self) for _ in range(layers)])

    def tensors(self) -> list[torch.Tensor]:
        return [t for layer in self.layers if layer.is_initialized for t in (layer.keys, layer.values)]

    def move(self, sources: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """Copy rows onto others."""
        if not len(sources):
            return
        for tensor in self.tensors():
            used = tensor[:, :, self.low : self.now]
            used[torch.from_numpy(targets)] = used[torch.from_numpy(sources)]

    def shift(self, rows: int, by: int) -> None:
        """Move the used columns by `by` (negative: left)."""
        low, now = self.low, self.now
        for tensor in self.tensors():
            tensor[:rows, :, low + by : now + by] = tensor[:rows, :, low:now].clone()
        self.low, self.now = low + by, now + by

    def adopt(self, other: SlotCache, first: int, rows: int) -> None:
        """Copy the first `rows` rows of another cache behind this one's, from `first` on."""
        width = other.now - other.low
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine[first : first + rows, :, self.now - width : self.now] = theirs[:rows, :, other.low : other.now]

    def open(self, rows: int, before: int) -> None:
        """Bring `before` columns left of `now` into use, for rows that enter; `rows` are there already."""
        if not rows:
            self.now, self.low = before, 0
        self.reserve(max(before, self.now) + 1, rows)
        if self.now < before:
            self.shift(rows, before - self.now)
        self.low = min(self.low, self.now - before)

    def reserve(self, columns: int, rows: int) -> None:
        """Make sure that there are so many columns; `rows` are in use."""
        if columns <= self.columns:
            return
        grown = max(columns, self.columns * 3 // 2)
        for layer in self.layers:
            if layer.is_initialized:
                for name in ("keys", "values"):
                    old = getattr(layer, name)
                    new = old.new_zeros((*old.shape[:2], grown, old.shape[3]))
                    if rows:  # Without, `now` may already be where the old tensor has no columns.
                        new[:rows, :, self.low : self.now] = old[:rows, :, self.low : self.now]
                    setattr(layer, name, new)
        self.columns = grown
