"""GSPO (arXiv 2507.18071 Eq. 5-7): GRPO with one ratio per response, the geometric mean of its tokens' ratios.

    J = (1/K) sum_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i),   s_i = exp(mean_t logratio_it)

Being means over a response, these ratios stay near 1, and the published range is a thousand times narrower than
GRPO's. It clips much more than GRPO's even so, in the paper as here: watch `loss/clipped`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from k2rl.losses.base import Lengths, LossInputs, Objective, above_zero, clipped_gain, per_rollout, standardised


@dataclass(frozen=True)
class Gspo(Objective):
    """The response's ratio is bounded to [1 - clip_low, 1 + clip_high]; the defaults are the paper's."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4

    def __post_init__(self) -> None:
        above_zero(clip_low=self.clip_low, clip_high=self.clip_high)

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """See `standardised`."""
        return standardised(rewards)

    def coefficients(self, lengths: Lengths) -> list[list[float]]:
        return per_rollout(lengths)

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logratio_B = x.logratios().sum(-1) / x.mask_B_L.sum(-1).clamp(min=1)
        gain_B, clipped_B = clipped_gain(logratio_B, x.advantages_B, self.clip_low, self.clip_high)
        loss = -(x.coefficients_B * gain_B).sum()
        with torch.no_grad():
            stats = {
                "logratio": (x.coefficients_B * logratio_B).sum(),
                "clipped": (x.coefficients_B * clipped_B).sum(),
            }
        return loss, stats
