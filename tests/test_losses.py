"""Gradient identities of the objectives, in float64 on a tabular policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from k2rl.losses import LossInputs, Objective, objective
from k2rl.losses.grpo import Grpo
from k2rl.losses.k2 import K2
from k2rl.recipe import ObjectiveConfig

K, L, V = 5, 4, 7
REWARDS = [1.0, 0.0, 0.25, -0.5, 1.0]


def setup_policy(drift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits per position, tokens of K responses of unequal length, their mask, and pi_old's log-probs."""
    draw = torch.Generator().manual_seed(0)
    logits_L_V = torch.randn(L, V, generator=draw, dtype=torch.float64).requires_grad_()
    tokens_K_L = torch.randint(0, V, (K, L), generator=draw)
    mask_K_L = torch.ones(K, L, dtype=torch.float64)
    mask_K_L[1, 3:] = mask_K_L[3, 2:] = 0
    moved = logits_L_V.detach() + drift * torch.randn(L, V, generator=draw, dtype=torch.float64)
    return logits_L_V, tokens_K_L, mask_K_L, logprobs(moved, tokens_K_L) * mask_K_L


def logprobs(logits_L_V: torch.Tensor, tokens_K_L: torch.Tensor) -> torch.Tensor:
    table = logits_L_V.log_softmax(-1).expand(K, L, V)
    return table.gather(-1, tokens_K_L[..., None]).squeeze(-1)


def gradient(goal: Objective, rewards: Sequence[float], drift: float = 0.0) -> torch.Tensor:
    logits, tokens, mask, old = setup_policy(drift)
    lengths = [int(n) for n in mask.sum(-1)]
    loss, _ = goal.loss(
        LossInputs(
            logprobs(logits, tokens),
            old,
            mask,
            torch.tensor(goal.advantages(rewards), dtype=torch.float64),
            torch.tensor(goal.coefficients([lengths])[0], dtype=torch.float64),
        )
    )
    (grad,) = torch.autograd.grad(loss, logits)
    return grad


def policy_gradient(advantages: Sequence[float]) -> torch.Tensor:
    """The gradient of -(1/K) sum_i A_i log pi(y_i)."""
    logits, tokens, mask, _ = setup_policy()
    sums = (logprobs(logits, tokens) * mask).sum(-1)
    loss = -(torch.tensor(advantages, dtype=torch.float64) * sums).mean()
    (grad,) = torch.autograd.grad(loss, logits)
    return grad


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.allclose(a, b, atol=1e-10, rtol=0))


@pytest.mark.parametrize("tau", [0.01, 0.1, 3.0])
def test_k2_at_pi_old_is_reinforce_with_the_group_mean(tau: float) -> None:
    mean = sum(REWARDS) / K
    assert close(gradient(K2(tau), REWARDS), policy_gradient([r - mean for r in REWARDS]))


def test_k2_times_k_over_k_minus_1_is_rloo() -> None:
    others = [(sum(REWARDS) - r) / (K - 1) for r in REWARDS]
    rloo = policy_gradient([r - o for r, o in zip(REWARDS, others, strict=True)])
    assert close(gradient(K2(0.1), REWARDS) * K / (K - 1), rloo)


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_k2_off_policy_is_minus_equation_3_of_k1_5(tau: float) -> None:
    """Eq. 3: (1/k) sum_j [grad log pi(y_j) (r_j - rbar) - (tau/2) grad (log pi(y_j)/pi_old(y_j))^2]."""
    logits, tokens, mask, old = setup_policy(drift=0.7)
    logratio = ((logprobs(logits, tokens) - old) * mask).sum(-1)
    sums = (logprobs(logits, tokens) * mask).sum(-1)
    advantages = torch.tensor(REWARDS, dtype=torch.float64) - sum(REWARDS) / K
    (ascent,) = torch.autograd.grad((sums * advantages - tau / 2 * logratio.square()).mean(), logits)
    assert close(gradient(K2(tau), REWARDS, drift=0.7), -ascent)


def test_k2_equal_rewards_pull_back_only_off_policy() -> None:
    assert close(gradient(K2(0.1), [1.0] * K), torch.zeros(L, V, dtype=torch.float64))
    assert gradient(K2(0.1), [1.0] * K, drift=0.7).abs().max() > 1e-3


def test_k2_only_reward_over_tau_matters() -> None:
    scaled = gradient(K2(0.2), [2 * r for r in REWARDS], drift=0.5)
    assert close(scaled, 2 * gradient(K2(0.1), REWARDS, drift=0.5))


def test_k2_coefficients_come_from_the_whole_mini_batch() -> None:
    assert K2().coefficients([[3, 9], [1, 1, 1, 1]]) == [[1 / 4, 1 / 4], [1 / 8] * 4]


def test_grpo_at_pi_old_is_a_token_mean_policy_gradient() -> None:
    goal = Grpo()
    advantages = torch.tensor(goal.advantages(REWARDS), dtype=torch.float64)
    logits, tokens, mask, _ = setup_policy()
    per_rollout = (logprobs(logits, tokens) * mask).sum(-1) / mask.sum(-1)
    (expected,) = torch.autograd.grad(-(advantages * per_rollout).mean(), logits)
    assert close(gradient(goal, REWARDS), expected)


def test_grpo_advantages_by_hand() -> None:
    assert Grpo().advantages([1.0, 0.0]) == pytest.approx(
        [0.5 / (math.sqrt(0.5) + 1e-4)] * 1 + [-0.5 / (math.sqrt(0.5) + 1e-4)]
    )
    assert Grpo().advantages([1.0, 1.0, 1.0]) == [0.0, 0.0, 0.0]


def test_grpo_stops_pushing_a_clipped_token() -> None:
    """A positive advantage gives no gradient once the ratio is past 1 + clip, a negative one still does."""
    for advantage, moves in ((1.0, False), (-1.0, True)):
        logprob = torch.tensor([[0.5]], requires_grad=True)
        inputs = LossInputs(logprob, torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([advantage]), torch.ones(1))
        loss, stats = Grpo(clip=0.2).loss(inputs)
        (grad,) = torch.autograd.grad(loss, logprob)
        assert bool(grad.abs().sum() > 0) is moves
        assert stats["clipped"] == 1


def test_objective_by_name() -> None:
    assert objective(ObjectiveConfig(name="k2", tau=0.3)) == K2(0.3)
    assert objective(ObjectiveConfig(name="k2")) == K2()
    assert objective(ObjectiveConfig(name="grpo", clip=0.1)) == Grpo(0.1)
