"""RLOO (arXiv 2402.14740): REINFORCE on whole responses, each measured against the mean of the *other* rewards.

    J = (1/K) sum_i (r_i - mean of the other rewards) log pi_theta(y_i|x)

K/(K-1) times K2's on-policy gradient. As published it has no importance ratio: the second mini-batch of an iteration,
and what a paused rollout said before, are treated as if the present policy had said them. The published reward
subtracts a KL to the start model; that is not in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from k2rl.losses.base import Lengths, LossInputs, Objective, per_rollout


@dataclass(frozen=True)
class Rloo(Objective):
    """It has no options."""

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """r minus the mean of the group's other rewards."""
        others = len(rewards) / (len(rewards) - 1)
        return [others * a for a in super().advantages(rewards)]

    def coefficients(self, lengths: Lengths) -> list[list[float]]:
        return per_rollout(lengths)

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logprob_B = (x.logprobs_B_L * x.mask_B_L).sum(-1)
        loss = -(x.coefficients_B * x.advantages_B * logprob_B).sum()
        with torch.no_grad():
            stats = {"logratio": (x.coefficients_B * x.logratios().sum(-1)).sum()}
        return loss, stats
