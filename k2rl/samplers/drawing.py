"""One token per row by inverting the cumulative distribution at a given uniform."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK = 128
"""The cumulative distribution is searched in two steps, blocks first: one pass in double precision less."""
_BELOW_ONE = 1 - 2.0**-53
AT_ONCE = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Probabilities held at once: what is needed beside the logits does not grow with the vocabulary."""


def draw(
    logits_S_V: torch.Tensor, temperatures_S: NDArray[np.float32], uniforms_S: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The tokens drawn and their log-probs.

    Temperature 0 takes the most likely token; log-probs are then those at T = 1.
    """
    rows, vocabulary = logits_S_V.shape
    some = max(AT_ONCE.get(logits_S_V.device.type, AT_ONCE["cpu"]) // vocabulary, 1)
    parts = [slice(at, at + some) for at in range(0, rows, some)]
    drawn = [_draw(logits_S_V[part], temperatures_S[part], uniforms_S[part]) for part in parts]
    return np.concatenate([tokens for tokens, _ in drawn]), np.concatenate([logprobs for _, logprobs in drawn])


def _draw(
    logits_S_V: torch.Tensor, temperatures_S: NDArray[np.float32], uniforms_S: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    device, (rows, vocabulary) = logits_S_V.device, logits_S_V.shape
    logits_S_V = logits_S_V.float()
    greedy = temperatures_S == 0
    scaled_S_V = logits_S_V - logits_S_V.amax(-1, keepdim=True)
    if (temperatures_S[~greedy] != 1).any():
        scaled_S_V /= torch.from_numpy(np.where(greedy, np.float32(1), temperatures_S)).to(device)[:, None]
    blocks = -(-vocabulary // _BLOCK)
    weights = torch.empty(rows, blocks * _BLOCK, device=device)
    torch.exp(scaled_S_V, out=weights[:, :vocabulary])
    weights[:, vocabulary:] = 0
    weights_S_N_M = weights.view(rows, blocks, _BLOCK)
    cumulative_S_N = weights_S_N_M.sum(-1, dtype=torch.float64).cumsum(-1)
    total_S = cumulative_S_N[:, -1:]
    wanted_S = torch.from_numpy(uniforms_S).to(device)[:, None] * total_S
    block_S = torch.searchsorted(cumulative_S_N, wanted_S, right=True)
    index = torch.arange(rows, device=device)
    before_S = cumulative_S_N.gather(-1, (block_S - 1).clamp(min=0)) * (block_S > 0)
    inner_S_M = weights_S_N_M[index, block_S[:, 0]].double().cumsum(-1)
    # Rounding must not carry the search past the block's last possible token.
    rest_S = torch.minimum(wanted_S - before_S, inner_S_M[:, -1:] * _BELOW_ONE)
    tokens_S = block_S * _BLOCK + torch.searchsorted(inner_S_M, rest_S, right=True)
    if greedy.any():
        tokens_S = torch.where(
            torch.from_numpy(greedy).to(device)[:, None], logits_S_V.argmax(-1, keepdim=True), tokens_S
        )
    logprobs_S = (scaled_S_V.gather(-1, tokens_S).double() - total_S.log()).float()
    return tokens_S[:, 0].cpu().numpy(), logprobs_S[:, 0].cpu().numpy()
