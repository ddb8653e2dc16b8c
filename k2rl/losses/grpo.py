"""GRPO (DeepSeekMath, arXiv 2402.03300): token-level clipped ratio, advantages divided by the group's standard
deviation, mean over each response's tokens. Without the KL term (beta = 0)."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from k2rl.types import mean

if TYPE_CHECKING:
    from k2rl.losses import LossInputs


@dataclass(frozen=True)
class Grpo:
    """`clip` bounds the token ratio to [1 - clip, 1 + clip]."""

    clip: float = 0.2

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """(r - mean) / (sample standard deviation + 1e-4)."""
        baseline, spread = mean(rewards), statistics.stdev(rewards)
        return [(r - baseline) / (spread + 1e-4) for r in rewards]

    def coefficients(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        """1 / (groups x valid rollouts x the response's tokens)."""
        return [[1.0 / (len(lengths) * len(group) * max(n, 1)) for n in group] for group in lengths]

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logratio_B_L = (x.logprobs_B_L - x.old_logprobs_B_L) * x.mask_B_L
        ratio_B_L = logratio_B_L.exp()
        clipped_B_L = ratio_B_L.clamp(1 - self.clip, 1 + self.clip)
        advantage_B_1 = x.advantages_B[:, None]
        gain_B_L = torch.minimum(ratio_B_L * advantage_B_1, clipped_B_L * advantage_B_1) * x.mask_B_L
        loss = -(x.coefficients_B[:, None] * gain_B_L).sum()
        with torch.no_grad():
            weight_B_L = x.coefficients_B[:, None] * x.mask_B_L
            stats = {
                "logratio": (weight_B_L * logratio_B_L).sum(),
                "clipped": (weight_B_L * (ratio_B_L != clipped_B_L)).sum(),
            }
        return loss, stats
