"""A micro-batch as one row without padding, in which the rollouts of a prompt share its tokens.

The tokens of a micro-batch stand in one row of M: each distinct prompt once, then its responses. Whatever a model does
token by token (embeddings, projections, MLPs, norms) is done once per token of that row; only attention looks at whole
sequences. Its queries, keys and values are laid out into (rows, width) blocks of like length there, a prompt's once per
response, and the outputs are taken back. For K responses of n tokens to a prompt of p, that is p + K n tokens of work
instead of K (p + n), and nothing for padding.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "k2rl_packed"
_WIDEST = 1.6
"""Sequences of one block differ in length by this factor at most."""


@dataclass(frozen=True)
class Prefix:
    """A prompt's tokens in the packed row, and where further copies of it lie: rows `first` to `end` of a block."""

    start: int
    length: int
    block: int
    first: int
    end: int


@dataclass(frozen=True)
class Packing:
    """Where the tokens of (B, L) sequences stand in a packed row of M, and how attention lays them out.

    `index_B_L` is the packed place of each token (0 where there is none). Block n is (rows, width) places, flattened in
    `gather`; `back_M` is the place of each packed token in the blocks put one after the other; `copies` are the prompts
    that stand in more than one sequence.
    """

    tokens_M: torch.Tensor
    positions_M: torch.Tensor
    index_B_L: torch.Tensor
    shapes: tuple[tuple[int, int], ...]
    gather: torch.Tensor
    back_M: torch.Tensor
    copies: tuple[Prefix, ...]


def pack(
    tokens_B_L: torch.Tensor, lengths_B: torch.Tensor, prompts_B: torch.Tensor, prompt_lengths_B: torch.Tensor
) -> Packing:
    """Lay out right-padded sequences. Neighbours with the same number in `prompts_B` begin with the same
    `prompt_lengths_B` tokens and share them."""
    tokens, lengths = tokens_B_L.numpy(), lengths_B.numpy()
    prompts, shared = prompts_B.numpy(), prompt_lengths_B.numpy()
    rows, width = tokens.shape
    first = np.ones(rows, dtype=bool)
    first[1:] = prompts[1:] != prompts[:-1]
    runs = np.cumsum(first)
    own = lengths - shared
    taken = np.where(first, lengths, own)
    ends = np.cumsum(taken)
    # A response follows the one before it; a prompt stands before the first of its responses.
    response_start = ends - own
    prompt_start = (response_start - shared)[np.maximum.accumulate(np.where(first, np.arange(rows), 0))]
    column = np.arange(width)
    index = np.where(
        column < shared[:, None], prompt_start[:, None] + column, (response_start - shared)[:, None] + column
    )
    valid = column < lengths[:, None]
    index = np.where(valid, index, 0)
    flat_tokens = np.empty(int(ends[-1]), dtype=np.int64)
    positions = np.empty_like(flat_tokens)
    flat_tokens[index[valid]] = tokens[valid]
    positions[index[valid]] = np.broadcast_to(column, valid.shape)[valid]

    back = np.empty_like(flat_tokens)
    gather, shapes, copies = [], [], []
    at = 0
    for n, block in enumerate(_blocks(lengths)):
        w = int(lengths[block].max())
        places, inside = index[block, :w], valid[block, :w]
        fresh = inside & (first[block][:, None] | (column[:w] >= shared[block][:, None]))
        back[places[fresh]] = at + np.flatnonzero(fresh)
        at += places.size
        gather.append(places.ravel())
        shapes.append((len(block), w))
        copies += _copies(n, runs[block], first[block], prompt_start[block], shared[block])
    return Packing(
        torch.from_numpy(flat_tokens),
        torch.from_numpy(positions),
        torch.from_numpy(index),
        tuple(shapes),
        torch.from_numpy(np.concatenate(gather)),
        torch.from_numpy(back),
        tuple(copies),
    )


def _blocks(lengths: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The sequences by like length, each block in its given order."""
    order = np.argsort(-lengths, kind="stable")
    blocks, start = [], 0
    for i in range(1, len(order) + 1):
        if i == len(order) or lengths[order[i]] * _WIDEST < lengths[order[start]]:
            blocks.append(np.sort(order[start:i]))
            start = i
    return blocks


def _copies(
    block: int,
    runs: np.ndarray[Any, Any],
    first: np.ndarray[Any, Any],
    starts: np.ndarray[Any, Any],
    shared: np.ndarray[Any, Any],
) -> list[Prefix]:
    """The prompts of a block's sequences, but for the copy that each prompt is taken from."""
    edges = [0, *(np.flatnonzero(np.diff(runs)) + 1).tolist(), len(runs)]
    found = []
    for low, high in pairwise(edges):
        begin = low + int(first[low])
        if begin < high and shared[low]:
            found.append(Prefix(int(starts[low]), int(shared[low]), block, begin, high))
    return found


def to(packing: Packing, device: torch.device) -> Packing:
    """The same on another device."""
    if device.type == "cpu":
        return packing
    moved = {f.name: x.to(device) for f in fields(packing) if isinstance(x := getattr(packing, f.name), torch.Tensor)}
    return replace(packing, **moved)  # type: ignore[arg-type]


class _Spread(torch.autograd.Function):
    """(M, …) -> the blocks one after the other; backward adds a prompt's gradients over its copies."""

    @staticmethod
    def forward(ctx: Any, packed: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing = packing
        return packed.index_select(0, packing.gather)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        packing: Packing = ctx.packing
        total = grad.index_select(0, packing.back_M)
        blocks = _split(grad, packing)
        for prefix in packing.copies:
            part = blocks[prefix.block][prefix.first : prefix.end, : prefix.length]
            total[prefix.start : prefix.start + prefix.length] += part.sum(0)
        return total, None


class _Collect(torch.autograd.Function):
    """The blocks one after the other -> (M, …). A prompt is taken from its first sequence."""

    @staticmethod
    def forward(ctx: Any, spread: torch.Tensor, packing: Packing) -> torch.Tensor:
        ctx.packing, ctx.size = packing, spread.shape[0]
        return spread.index_select(0, packing.back_M)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        spread = grad.new_zeros(ctx.size, *grad.shape[1:])
        return spread.index_copy_(0, ctx.packing.back_M, grad), None


def _split(spread: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
    parts = spread.split([rows * width for rows, width in packing.shapes])  # type: ignore[no-untyped-call]
    return [p.view(*shape, *p.shape[1:]) for p, shape in zip(parts, packing.shapes, strict=True)]


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    packing: Packing | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of `packing`; without one, transformers' own SDPA attention.

    Query, key and value are (1, heads, M, head size); the output is (1, M, heads, head size).
    """
    if packing is None:
        plain: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return plain
    laid_out = [_split(_Spread.apply(x[0].transpose(0, 1), packing), packing) for x in (query, key, value)]  # type: ignore[no-untyped-call]
    outputs = [
        sdpa_attention_forward(module, *(x.transpose(1, 2) for x in block), None, **kwargs)[0].flatten(0, 1)
        for block in zip(*laid_out, strict=True)
    ]
    spread = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return _Collect.apply(spread, packing)[None], None  # type: ignore[no-untyped-call]


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def hidden_states(model: Any, packing: Packing) -> torch.Tensor:
    """The last hidden states (M, D) of a model whose attention is `ATTENTION`, with gradients."""
    device = packing.tokens_M.device
    out = model.get_decoder()(
        input_ids=packing.tokens_M[None],
        position_ids=packing.positions_M[None],
        # Four dimensions: taken for a mask that is already prepared, so that none is made. Nobody looks at it.
        attention_mask=torch.zeros(1, 1, 1, 1, device=device),
        use_cache=False,
        packing=packing,
    )
    hidden: torch.Tensor = out.last_hidden_state[0]
    return hidden
