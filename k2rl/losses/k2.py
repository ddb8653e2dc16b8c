"""Kimi K2's policy objective (arXiv 2507.20534 section 3.2.3, from K1.5, arXiv 2501.12599 section 2.3.2).

    L = E_x (1/K) sum_i (r_i - rbar - tau * logratio_i)^2

with the sequence-level logratio_i = log pi_theta(y_i|x) - log pi_old(y_i|x), summed over policy tokens. We minimise
L / (2 tau): its gradient is minus K1.5's Eq. 3, so PTX and critic terms mean the same for every tau. At
pi_theta = pi_old it is REINFORCE with the group-mean baseline. No std, no clipping, no length normalisation.
tau is disclosed nowhere; 0.1 is our own choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from k2rl.types import mean

if TYPE_CHECKING:
    from k2rl.losses import LossInputs


@dataclass(frozen=True)
class K2:
    """`tau` weighs the squared log-ratio against rewards in [-1, 1]; only r/tau matters."""

    tau: float = 0.1

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """Reward minus the plain mean, own sample included."""
        baseline = mean(rewards)
        return [r - baseline for r in rewards]

    def coefficients(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        """1 / (groups x valid rollouts of the group)."""
        return [[1.0 / (len(lengths) * len(group))] * len(group) for group in lengths]

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logratio_B = ((x.logprobs_B_L - x.old_logprobs_B_L) * x.mask_B_L).sum(-1)
        residual_B = x.advantages_B - self.tau * logratio_B
        loss = (x.coefficients_B * residual_B.square()).sum() / (2 * self.tau)
        with torch.no_grad():
            stats = {
                "logratio": (x.coefficients_B * logratio_B).sum(),
                "logratio_sq": (x.coefficients_B * logratio_B.square()).sum(),
            }
        return loss, stats
