"""Kimi K2's policy objective (arXiv 2507.20534 section 3.2.3, from K1.5, arXiv 2501.12599 section 2.3.2).

    L = E_x (1/K) sum_i (r_i - rbar - tau * logratio_i)^2

with the sequence-level logratio_i = log pi_theta(y_i|x) - log pi_old(y_i|x), summed over policy tokens. We minimise
L / (2 tau): its gradient is minus K1.5's Eq. 3, so PTX and critic terms mean the same for every tau. At
pi_theta = pi_old it is REINFORCE with the group-mean baseline. No std, no clipping, no length normalisation.
A group of equal rewards still pulls back to pi_old once the policy has moved, so it is never left out.
tau is disclosed nowhere; 0.1 is our own choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from k2rl.losses.base import Lengths, LossInputs, Objective, above_zero, per_rollout


@dataclass(frozen=True)
class K2(Objective):
    """`tau` weighs the squared log-ratio against rewards in [-1, 1]; only r/tau matters."""

    tau: float = 0.1

    def __post_init__(self) -> None:
        above_zero(tau=self.tau)

    def coefficients(self, lengths: Lengths) -> list[list[float]]:
        return per_rollout(lengths)

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logratio_B = x.logratios().sum(-1)
        residual_B = x.advantages_B - self.tau * logratio_B
        loss = (x.coefficients_B * residual_B.square()).sum() / (2 * self.tau)
        with torch.no_grad():
            stats = {
                "logratio": (x.coefficients_B * logratio_B).sum(),
                "logratio_sq": (x.coefficients_B * logratio_B.square()).sum(),
            }
        return loss, stats
