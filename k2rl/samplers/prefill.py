"""One forward pass over prompts, and the mask it has in common with decoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer."""


@dataclass(frozen=True)
class Prefix:
    """What rows have in the cache: keys and values, (rows, heads, columns, head size) per layer, which columns are
    tokens rather than padding, (rows, columns), and how many these are."""

    kv: KeyValues
    visible: torch.Tensor
    lengths: list[int]


def prefill(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    keep: bool = True,
    prefix: Prefix | None = None,
    parents: Sequence[int] = (),
) -> tuple[Prefix, torch.Tensor]:
    """What left-padded prompts leave in the cache (without `keep`, no keys and values) and their last logits (P, V).

    With a prefix, each prompt goes on after one of its rows, its parent.
    """
    width = max(len(p) for p in prompts)
    tokens = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts])
    starts = torch.tensor([width - len(p) for p in prompts])
    columns = torch.arange(width)
    begun = [prefix.lengths[p] for p in parents] if prefix else [0] * len(prompts)
    positions = (columns - starts[:, None]).clamp(min=0) + torch.tensor(begun)[:, None]
    causal = columns[None, :] <= columns[:, None]
    own = columns >= starts[:, None]
    # Padding attends to itself: a row that sees nothing would be NaN and spread through the values.
    mask = (causal & own[:, None]) | torch.eye(width, dtype=torch.bool)
    cache = None
    if prefix or keep:
        cache = _PrefixCache(model.config.get_text_config().num_hidden_layers, prefix, parents, keep)
    if prefix:
        before = prefix.visible[list(parents)]
        mask = torch.cat((before[:, None].expand(-1, width, -1), mask), -1)
        own = torch.cat((before, own), -1)
    out = model(
        input_ids=tokens.to(model.device),
        attention_mask=additive(model, mask[:, None]),
        position_ids=positions.to(model.device),
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=1,
    )
    kv = [(layer.keys, layer.values) for layer in cache.layers] if cache is not None and keep else []
    return Prefix(kv, own, [b + len(p) for b, p in zip(begun, prompts, strict=True)]), out.logits[:, -1]


def additive(model: Any, visible: torch.Tensor) -> torch.Tensor:
    """0 where a key is visible, else the lowest number: what every attention implementation understands."""
    mask = torch.zeros(visible.shape, dtype=model.dtype).masked_fill_(~visible, torch.finfo(model.dtype).min)
    return mask.to(model.device)


class _PrefixLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of one pass: each row's parent's keys and values are copied before its own when they are needed, so
    that without `keep` those of one layer are there at a time."""

    is_sliding = False

    def __init__(
        self, past: tuple[torch.Tensor, torch.Tensor] | None, parents: torch.Tensor | None, keep: bool
    ) -> None:
        super().__init__()
        self._past, self._parents, self._keep = past, parents, keep

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = key_states, value_states
        if self._past is not None:
            keys, values = (
                torch.cat((past[self._parents], new), 2) for past, new in zip(self._past, (keys, values), strict=True)
            )
        if self._keep:
            self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        return 0 if self._past is None else int(self._past[0].shape[2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1


class _PrefixCache(Cache):  # type: ignore[misc]
    def __init__(self, layers: int, prefix: Prefix | None, parents: Sequence[int], keep: bool) -> None:
        pasts = prefix.kv if prefix else [None] * layers
        rows = torch.tensor(parents, device=prefix.kv[0][0].device) if prefix else None
        super().__init__(layers=[_PrefixLayer(past, rows, keep) for past in pasts])
