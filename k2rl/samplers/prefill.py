"""One forward pass over prompts, and the mask it has in common with decoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

KeyValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Per layer."""


def prefill(
    model: Any, prompts: Sequence[Sequence[int]], pad_id: int, keep: bool = True
) -> tuple[KeyValues, torch.Tensor]:
    """Keys and values of left-padded prompts, (P, heads, longest, head size) per layer, and the last logits (P, V)."""
    width = max(len(p) for p in prompts)
    tokens = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts])
    starts = torch.tensor([width - len(p) for p in prompts])
    columns = torch.arange(width)
    positions = (columns - starts[:, None]).clamp(min=0)
    causal = columns[None, :] <= columns[:, None]
    visible = columns[None, None, :] >= starts[:, None, None]
    # Padding attends to itself: a row that sees nothing would be NaN and spread through the values.
    mask = (causal & visible) | torch.eye(width, dtype=torch.bool)
    cache = DynamicCache() if keep else None
    out = model(
        input_ids=tokens.to(model.device),
        attention_mask=additive(model, mask[:, None]),
        position_ids=positions.to(model.device),
        past_key_values=cache,
        use_cache=keep,
        logits_to_keep=1,
    )
    layers = [(layer.keys, layer.values) for layer in cache.layers] if cache is not None else []
    return layers, out.logits[:, -1]


def additive(model: Any, visible: torch.Tensor) -> torch.Tensor:
    """0 where a key is visible, else the lowest number: what every attention implementation understands."""
    mask = torch.zeros(visible.shape, dtype=model.dtype).masked_fill_(~visible, torch.finfo(model.dtype).min)
    return mask.to(model.device)
