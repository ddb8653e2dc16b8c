"""DAPO (arXiv 2503.14476): GRPO with a higher upper clip, every token of the mini-batch counting the same, and groups
of equal rewards left out.

In here: clip-higher, the token-level mean, the dropping of even groups. Not in here: sampling more prompts until the
batch is full again (the batch is smaller by what was dropped), and the overlong soft penalty, which is a matter of
the reward (see docs/budgets.md). An even group has no gradient in this loss, also off-policy: leaving it out changes
N alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from k2rl.losses.base import Lengths, LossInputs, Objective, above_zero, clipped_gain, per_token, standardised


@dataclass(frozen=True)
class Dapo(Objective):
    """The token ratio is bounded to [1 - clip_low, 1 + clip_high]; `drop_even` leaves groups of equal rewards out."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    drop_even: bool = True

    def __post_init__(self) -> None:
        above_zero(clip_low=self.clip_low, clip_high=self.clip_high)

    @property
    def drops_even(self) -> bool:
        return self.drop_even

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """See `standardised`."""
        return standardised(rewards)

    def coefficients(self, lengths: Lengths) -> list[list[float]]:
        return per_token(lengths)

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logratio_B_L, weight_B_L = x.logratios(), x.token_weights()
        gain_B_L, clipped_B_L = clipped_gain(logratio_B_L, x.advantages_B[:, None], self.clip_low, self.clip_high)
        loss = -(weight_B_L * gain_B_L).sum()
        with torch.no_grad():
            stats = {
                "logratio": (weight_B_L * logratio_B_L).sum(),
                "clipped": (weight_B_L * clipped_B_L).sum(),
            }
        return loss, stats
