"""What the policy objectives have in common."""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from k2rl.types import mean

Lengths = Sequence[Sequence[int]]
"""The policy-token counts of a mini-batch, per group and rollout."""


@dataclass(frozen=True)
class LossInputs:
    """What a loss sees of a (micro-)batch. Positions without a policy token are 0 in `mask_B_L`; the old log-probs are
    those that the engine recorded as it sampled; with `trainer.correction` the trainer's own as the iteration began."""

    logprobs_B_L: torch.Tensor
    old_logprobs_B_L: torch.Tensor
    mask_B_L: torch.Tensor
    advantages_B: torch.Tensor
    coefficients_B: torch.Tensor

    def logratios(self) -> torch.Tensor:
        """log pi_theta - log pi_old per token: (B, L), 0 where the mask is 0."""
        return (self.logprobs_B_L - self.old_logprobs_B_L) * self.mask_B_L

    def token_weights(self) -> torch.Tensor:
        """Each token's coefficient in the sum: (B, L), 0 where the mask is 0."""
        return self.coefficients_B[:, None] * self.mask_B_L


@dataclass(frozen=True)
class Objective(ABC):
    """A policy objective: a frozen dataclass whose fields are its options in a recipe.

    A `ValueError` of its `__post_init__` ("tau is 0: it must be above 0") becomes the user's one line.
    """

    @property
    def drops_even(self) -> bool:
        """Whether groups whose rewards are all equal leave the batch before the coefficients are counted."""
        return False

    @property
    def masks_mismatch(self) -> bool:
        """Whether it deals itself with tokens whose recorded log-prob is not the trainer's: `trainer.correction`, which
        replaces the recorded ones, would take away what it goes by."""
        return False

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """The advantages of a group's valid rollouts (two or more): reward minus the plain mean, own sample included,
        unless an objective says otherwise."""
        baseline = mean(rewards)
        return [r - baseline for r in rewards]

    @abstractmethod
    def coefficients(self, lengths: Lengths) -> list[list[float]]:
        """Per group and rollout of a mini-batch, its coefficient in the sum."""

    @abstractmethod
    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum over rollouts (a scalar), and statistics that add up over micro-batches."""


def standardised(rewards: Sequence[float]) -> list[float]:
    """(r - mean) / (sample standard deviation + 1e-4): the advantages of GRPO and its relatives."""
    baseline, spread = mean(rewards), statistics.stdev(rewards)
    return [(r - baseline) / (spread + 1e-4) for r in rewards]


def per_rollout(lengths: Lengths) -> list[list[float]]:
    """1 / (groups x valid rollouts of the group): every rollout counts the same."""
    return [[1.0 / (len(lengths) * len(group))] * len(group) for group in lengths]


def per_token(lengths: Lengths) -> list[list[float]]:
    """1 / (policy tokens of the whole mini-batch): every token counts the same, long responses more than short."""
    total = max(sum(n for group in lengths for n in group), 1)
    return [[1.0 / total] * len(group) for group in lengths]


def above_zero(**options: float) -> None:
    """Refuse the first option that is not a number above 0.

    Raises:
        ValueError: names it.
    """
    for name, value in options.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} is {value}: it must be above 0")


def clipped_gain(
    logratio: torch.Tensor, advantage: torch.Tensor, low: float, high: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's min(ratio A, clip(ratio, 1 - low, 1 + high) A), and where the clip took the gradient away (0 or 1)."""
    ratio = logratio.exp()
    plain, clipped = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    return torch.minimum(plain, clipped), (clipped < plain).to(ratio.dtype)
