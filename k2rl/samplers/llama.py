"""A decoding step of Llama-type models without the modules around its arithmetic, which at small sizes cost as much.

Only for float32: there it is exact up to the order of additions. Whatever is not known to be of this form (other
architectures, adapters, other precisions) is decoded by calling the model, see `decoder.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Linear
from torch.nn.functional import linear, rms_norm

from k2rl.samplers.slot_cache import SlotCache

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def known(model: Any) -> bool:
    """Whether `logits` speaks for this model."""
    if type(model).__name__ not in ARCHITECTURES or model.dtype != torch.float32:
        return False
    parts = [
        *(getattr(layer.self_attn, name) for layer in model.model.layers for name in _ATTENTION),
        *(getattr(layer.mlp, name) for layer in model.model.layers for name in _MLP),
        model.lm_head,
    ]
    return all(type(part) is Linear for part in parts)


def logits(
    model: Any, tokens_S: torch.Tensor, positions_S: torch.Tensor, mask_S_C: torch.Tensor, cache: SlotCache
) -> torch.Tensor:
    """Next-token logits (S, V) after one more token per row. The mask is added to the scores of the C columns in use,
    the new one among them."""
    inner = model.model
    rows, size = len(tokens_S), inner.layers[0].self_attn.head_dim
    hidden_S_E = inner.embed_tokens.weight[tokens_S]
    cos, sin = inner.rotary_emb(hidden_S_E, positions_S[:, None])
    masks: dict[int, torch.Tensor] = {}
    for layer, kept in zip(inner.layers, cache.layers, strict=True):
        attention, mlp = layer.self_attn, layer.mlp
        x = _norm(layer.input_layernorm, hidden_S_E)
        query, key, value = (_project(getattr(attention, n), x).view(rows, -1, size) for n in _ATTENTION[:3])
        keys, values = kept.update(_rotate(key, cos, sin)[:, :, None], value[:, :, None])
        heads = keys.shape[1]
        if heads not in masks:
            masks[heads] = mask_S_C[:, None].expand(-1, heads, -1).reshape(rows * heads, 1, -1)
        # Query heads that share a key head are rows of one matrix: keys are neither repeated nor copied.
        shared = _rotate(query, cos, sin).reshape(rows * heads, -1, size)
        scores = torch.baddbmm(masks[heads], shared, keys.flatten(0, 1).mT, alpha=attention.scaling)
        seen = torch.bmm(scores.softmax(-1), values.flatten(0, 1))
        hidden_S_E = hidden_S_E + _project(attention.o_proj, seen.view(rows, -1))
        x = _norm(layer.post_attention_layernorm, hidden_S_E)
        x = mlp.act_fn(_project(mlp.gate_proj, x)) * _project(mlp.up_proj, x)
        hidden_S_E = hidden_S_E + _project(mlp.down_proj, x)
    return _project(model.lm_head, _norm(inner.norm, hidden_S_E))


def _project(part: Linear, x: torch.Tensor) -> torch.Tensor:
    return linear(x, part.weight, part.bias)


def _norm(part: Any, x: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, x.shape[-1:], part.weight, part.variance_epsilon)


def _rotate(x_S_H_D: torch.Tensor, cos_S_1_D: torch.Tensor, sin_S_1_D: torch.Tensor) -> torch.Tensor:
    one, other = x_S_H_D.chunk(2, -1)
    return x_S_H_D * cos_S_1_D + torch.cat((-other, one), -1) * sin_S_1_D
