"""GRPO (DeepSeekMath, arXiv 2402.03300): token-level clipped ratio, advantages divided by the group's standard
deviation, mean over each response's tokens. Without the KL term (beta = 0)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from k2rl.losses.base import Lengths, LossInputs, Objective, above_zero, clipped_gain, standardised


@dataclass(frozen=True)
class Grpo(Objective):
    """`clip` bounds the token ratio to [1 - clip, 1 + clip]."""

    clip: float = 0.2

    def __post_init__(self) -> None:
        above_zero(clip=self.clip)

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """See `standardised`."""
        return standardised(rewards)

    def coefficients(self, lengths: Lengths) -> list[list[float]]:
        """1 / (groups x valid rollouts x the response's tokens)."""
        return [[1.0 / (len(lengths) * len(group) * max(n, 1)) for n in group] for group in lengths]

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logratio_B_L, weight_B_L = x.logratios(), x.token_weights()
        gain_B_L, clipped_B_L = clipped_gain(logratio_B_L, x.advantages_B[:, None], self.clip, self.clip)
        loss = -(weight_B_L * gain_B_L).sum()
        with torch.no_grad():
            stats = {
                "logratio": (weight_B_L * logratio_B_L).sum(),
                "clipped": (weight_B_L * clipped_B_L).sum(),
            }
        return loss, stats
