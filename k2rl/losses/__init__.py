"""Policy objectives: one file each, pure functions of log-probs and advantages, found by name.

An objective says three things: how a group's rewards become advantages, which coefficient each rollout gets, and
its loss. Losses are sums of coefficient x term, and the coefficients come from the *whole* mini-batch, so that
micro-batches and ranks only add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from k2rl.losses.grpo import Grpo
from k2rl.losses.k2 import K2
from k2rl.recipe import ObjectiveConfig

__all__ = ["K2", "Grpo", "LossInputs", "Objective", "objective"]


@dataclass(frozen=True)
class LossInputs:
    """What a loss sees of a (micro-)batch. Positions without a policy token are 0 in `mask_B_L`."""

    logprobs_B_L: torch.Tensor
    old_logprobs_B_L: torch.Tensor
    mask_B_L: torch.Tensor
    advantages_B: torch.Tensor
    coefficients_B: torch.Tensor


class Objective(Protocol):
    """A policy objective."""

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """The advantages of a group's valid rollouts."""

    def coefficients(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        """Per group and rollout of a mini-batch, given policy-token counts, its coefficient in the sum."""

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum over rollouts (a scalar), and statistics that add up over micro-batches."""


def objective(config: ObjectiveConfig) -> Objective:
    """The objective a recipe names, with its settings over the objective's defaults."""
    if config.name == "grpo":
        return Grpo() if config.clip is None else Grpo(clip=config.clip)
    assert config.name == "k2", config.name
    return K2() if config.tau is None else K2(tau=config.tau)
