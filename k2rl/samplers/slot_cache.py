"""The keys and values of all rows that decode at once, aligned at their newest column."""

from __future__ import annotations

from typing import Any

import torch
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
        self.keys[:rows, :, now] = key_states[:, :, 0]
        self.values[:rows, :, now] = value_states[:, :, 0]
        return self.keys[:rows, :, low : now + 1], self.values[:rows, :, low : now + 1]

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

    def move(self, source: int, target: int) -> None:
        for layer in self.layers:
            layer.keys[target] = layer.keys[source]
            layer.values[target] = layer.values[source]

    def shift(self, rows: int, by: int) -> None:
        """Move the used columns by `by` (negative: left)."""
        low, now = self.low, self.now
        for layer in self.layers:
            for tensor in (layer.keys, layer.values):
                tensor[:rows, :, low + by : now + by] = tensor[:rows, :, low:now].clone()
        self.low, self.now = low + by, now + by

    def reserve(self, columns: int) -> None:
        if columns <= self.columns:
            return
        grown = max(columns, self.columns * 3 // 2)
        for layer in self.layers:
            if layer.is_initialized:
                for name in ("keys", "values"):
                    old = getattr(layer, name)
                    new = old.new_zeros((*old.shape[:2], grown, old.shape[3]))
                    new[:, :, : self.columns] = old
                    setattr(layer, name, new)
        self.columns = grown
