"""Kimi K2.5's policy objective (arXiv 2602.02276 Eq. 1): per token, and bounded where the policy has moved too far.

    J = (1/N) sum_i sum_t [ clip(ratio_it) (r_i - rbar) - tau * logratio_it^2 ]

with N the policy tokens of the mini-batch, and the log-probs that the engine recorded as pi_old: made for rollouts
whose policy is some updates old. A token whose log-ratio lies outside [-low, high] has no policy gradient, **whatever
the sign of its advantage**; the squared term is never masked, and pulls such a token back. Hence groups of equal
rewards stay in the batch: off-policy they have a gradient.

No value of tau or of the range is published. Ours are own choices: a ratio between 1/2 and 2, and tau = 0.1 (its
gradient at the ratio of 2 is 0.14, against advantages of about 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from k2rl.losses.base import Lengths, LossInputs, Objective, above_zero, per_token


@dataclass(frozen=True)
class K2_5(Objective):  # noqa: N801
    """`tau` weighs the squared token log-ratio; `low` and `high` bound the log-ratio of tokens that learn."""

    tau: float = 0.1
    low: float = 0.7
    high: float = 0.7

    def __post_init__(self) -> None:
        above_zero(tau=self.tau, low=self.low, high=self.high)

    @property
    def masks_mismatch(self) -> bool:
        return True

    def coefficients(self, lengths: Lengths) -> list[list[float]]:
        return per_token(lengths)

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logratio_B_L, weight_B_L = x.logratios(), x.token_weights()
        # Clamped before exp, the gradient outside is an exact 0, also where exp would overflow.
        ratio_B_L = logratio_B_L.clamp(-self.low, self.high).exp()
        gain_B_L = ratio_B_L * x.advantages_B[:, None] - self.tau * logratio_B_L.square()
        loss = -(weight_B_L * gain_B_L).sum()
        with torch.no_grad():
            outside_B_L = (logratio_B_L < -self.low) | (logratio_B_L > self.high)
            stats = {
                "logratio": (weight_B_L * logratio_B_L).sum(),
                "logratio_sq": (weight_B_L * logratio_B_L.square()).sum(),
                "clipped": (weight_B_L * outside_B_L).sum(),
            }
        return loss, stats
