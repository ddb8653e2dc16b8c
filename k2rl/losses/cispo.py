"""CISPO (MiniMax-M1, arXiv 2506.13585 Eq. 4-5): the importance weight is clipped and held constant, not the update, so
that no token stops learning.

    J = (1/N) sum_i sum_t stop_gradient(clip(ratio_it, 1 - clip_low, 1 + clip_high)) A_i log pi_theta(y_it)

with N the policy tokens of the mini-batch. The paper sets no lower bound and tunes the upper one without giving it:
`clip_low` of 1 is no bound, `clip_high` is our own choice. No KL term, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from k2rl.losses.base import Lengths, LossInputs, Objective, above_zero, per_token, standardised


@dataclass(frozen=True)
class Cispo(Objective):
    """A token's weight is bounded to [1 - clip_low, 1 + clip_high]."""

    clip_low: float = 1.0
    clip_high: float = 1.0

    def __post_init__(self) -> None:
        above_zero(clip_low=self.clip_low, clip_high=self.clip_high)

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """See `standardised`."""
        return standardised(rewards)

    def coefficients(self, lengths: Lengths) -> list[list[float]]:
        return per_token(lengths)

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        weight_B_L = x.token_weights()
        with torch.no_grad():
            logratio_B_L = x.logratios()
            ratio_B_L = logratio_B_L.exp()
            held_B_L = ratio_B_L.clamp(1 - self.clip_low, 1 + self.clip_high)
            stats = {
                "logratio": (weight_B_L * logratio_B_L).sum(),
                "clipped": (weight_B_L * (held_B_L != ratio_B_L)).sum(),
            }
        loss = -(weight_B_L * held_B_L * x.advantages_B[:, None] * x.logprobs_B_L).sum()
        return loss, stats
