"""The objectives: values and gradients by hand, and the identities between them, in float64 on a tabular policy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
import torch

from k2rl.errors import UserError
from k2rl.losses import OBJECTIVES, LossInputs, Objective, objective, settings
from k2rl.losses.cispo import Cispo
from k2rl.losses.dapo import Dapo
from k2rl.losses.grpo import Grpo
from k2rl.losses.gspo import Gspo
from k2rl.losses.k2 import K2
from k2rl.losses.k2_5 import K2_5
from k2rl.losses.rloo import Rloo

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


def inputs(goal: Objective, rewards: Sequence[float], drift: float = 0.0) -> tuple[torch.Tensor, LossInputs]:
    """The logits, and what the loss sees of one group."""
    logits, tokens, mask, old = setup_policy(drift)
    lengths = [int(n) for n in mask.sum(-1)]
    return logits, LossInputs(
        logprobs(logits, tokens),
        old,
        mask,
        torch.tensor(goal.advantages(rewards), dtype=torch.float64),
        torch.tensor(goal.coefficients([lengths])[0], dtype=torch.float64),
    )


def gradient(goal: Objective, rewards: Sequence[float], drift: float = 0.0) -> torch.Tensor:
    logits, x = inputs(goal, rewards, drift)
    (grad,) = torch.autograd.grad(goal.loss(x)[0], logits)
    return grad


def one(goal: Objective, ratios: Sequence[float], advantage: float) -> tuple[float, list[float], dict[str, float]]:
    """Loss, gradient by log-prob, and statistics of one response whose tokens have these ratios; coefficient 1."""
    logprob = torch.tensor([ratios], dtype=torch.float64).log().requires_grad_()
    zeros, ones = torch.zeros_like(logprob), torch.ones_like(logprob)
    x = LossInputs(logprob, zeros, ones, torch.tensor([advantage], dtype=torch.float64), ones[:, 0])
    loss, stats = goal.loss(x)
    (grad,) = torch.autograd.grad(loss, logprob)
    return float(loss.detach()), grad[0].tolist(), {k: float(v) for k, v in stats.items()}


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


def test_rloo_is_measured_against_the_others() -> None:
    assert Rloo().advantages([1.0, 0.0, 0.5]) == pytest.approx([0.75, -0.75, 0.0])


def test_rloo_is_k_over_k_minus_1_times_on_policy_k2() -> None:
    assert close(gradient(Rloo(), REWARDS), K / (K - 1) * gradient(K2(0.3), REWARDS))


def test_on_policy_the_token_level_objectives_are_one() -> None:
    """DAPO and CISPO are the same at ratio 1; K2.5 is that without the division by the standard deviation."""
    dapo, cispo, k2_5 = (gradient(goal, REWARDS) for goal in (Dapo(), Cispo(), K2_5()))
    spread = REWARDS[0] - sum(REWARDS) / K
    assert close(dapo, cispo)
    assert close(dapo, k2_5 * (Dapo().advantages(REWARDS)[0] / spread))


def test_on_policy_the_rollout_level_objectives_are_one() -> None:
    """GSPO's ratio is a mean over tokens, so its gradient is GRPO's."""
    assert close(gradient(Gspo(), REWARDS), gradient(Grpo(), REWARDS))


def test_with_responses_of_one_length_grpo_is_dapo() -> None:
    lengths = [[4, 4], [4, 4]]
    assert Grpo().coefficients(lengths) == Dapo().coefficients(lengths) == [[1 / 16] * 2] * 2
    assert (
        Dapo(clip_high=0.2).loss(inputs(Dapo(), REWARDS, 0.5)[1])[0] == Grpo().loss(inputs(Dapo(), REWARDS, 0.5)[1])[0]
    )


@pytest.mark.parametrize("goal", [K2_5(), Dapo(), Cispo()])
def test_tokens_of_the_whole_mini_batch_count_the_same(goal: Objective) -> None:
    assert goal.coefficients([[3, 9], [1, 1, 1, 1]]) == [[1 / 16] * 2, [1 / 16] * 4]


@pytest.mark.parametrize("goal", [Rloo(), Gspo()])
def test_rollouts_of_the_whole_mini_batch_count_the_same(goal: Objective) -> None:
    assert goal.coefficients([[3, 9], [1, 1, 1, 1]]) == [[1 / 4] * 2, [1 / 8] * 4]


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_k2_5_masks_whatever_the_sign_and_pulls_back_unmasked(advantage: float) -> None:
    goal = K2_5(tau=0.25, low=math.log(2), high=math.log(2))
    ratios = [0.4, 0.5, 1.0, 2.0, 2.5]
    _, grad, stats = one(goal, ratios, advantage)
    pull = [2 * 0.25 * math.log(r) for r in ratios]
    assert grad == pytest.approx([pull[0], pull[1] - 0.5 * advantage, -advantage, pull[3] - 2 * advantage, pull[4]])
    assert stats["clipped"] == 2
    assert stats["logratio"] == pytest.approx(sum(math.log(r) for r in ratios))
    assert stats["logratio_sq"] == pytest.approx(sum(math.log(r) ** 2 for r in ratios))


def test_k2_5_by_hand() -> None:
    """ratios 1 and 2 within the range, 4 beyond it: its value is that of the bound."""
    value, _, _ = one(K2_5(tau=0.5, low=1.0, high=1.0), [1.0, 2.0, 4.0], 0.5)
    assert value == pytest.approx(-(0.5 * (1 + 2 + math.e) - 0.5 * (math.log(2) ** 2 + math.log(4) ** 2)))


def test_k2_5_has_no_overflow_far_outside() -> None:
    _, grad, _ = one(K2_5(tau=0.1), [1e300, 1.0], 1.0)
    assert grad == pytest.approx([0.2 * math.log(1e300), -1.0])


def test_equal_rewards_move_only_what_has_a_squared_term() -> None:
    for name, cls in OBJECTIVES.items():
        off = gradient(cls(), [0.5] * K, drift=0.7).abs().max()
        assert bool(off > 1e-3) is (name in ("k2", "k2_5")), name
        assert gradient(cls(), [0.5] * K).abs().max() < 1e-12, name
        # Leaving such a group out is a change of objective for those two.
        assert not (cls().drops_even and name in ("k2", "k2_5"))


@pytest.mark.parametrize(
    ("goal", "ratio", "advantage", "moves"),
    [
        (Grpo(0.2), 1.25, 1.0, False),
        (Grpo(0.2), 1.25, -1.0, True),
        (Grpo(0.2), 0.75, 1.0, True),
        (Grpo(0.2), 0.75, -1.0, False),
        (Dapo(), 1.25, 1.0, True),
        (Dapo(), 1.29, 1.0, False),
        (Dapo(), 0.79, -1.0, False),
    ],
)
def test_a_clipped_token_is_pushed_no_further(goal: Objective, ratio: float, advantage: float, moves: bool) -> None:
    _, (grad,), stats = one(goal, [ratio], advantage)
    assert grad == pytest.approx(-ratio * advantage if moves else 0.0)
    assert stats["clipped"] == (not moves)


def test_gspo_clips_whole_responses_by_their_mean_ratio() -> None:
    """exp(mean log-ratio) of (2, 1/2) is 1, of (2, 1) is sqrt 2."""
    goal = Gspo(clip_low=0.1, clip_high=0.1)
    value, grad, stats = one(goal, [2.0, 0.5], 3.0)
    assert value == pytest.approx(-3.0)
    assert grad == pytest.approx([-1.5, -1.5])
    assert stats["clipped"] == 0
    value, grad, stats = one(goal, [2.0, 1.0], 3.0)
    assert value == pytest.approx(-3.3)
    assert grad == [0.0, 0.0]
    assert stats["clipped"] == 1
    value, grad, _ = one(goal, [2.0, 1.0], -3.0)
    assert value == pytest.approx(3 * math.sqrt(2))
    assert grad == pytest.approx([1.5 * math.sqrt(2)] * 2)


def test_cispo_weighs_every_token_and_drops_none() -> None:
    """Weights held constant: bounded at 2 above, not below. A clipped token goes on learning."""
    _, grad, stats = one(Cispo(), [0.01, 1.0, 3.0], 0.5)
    assert grad == pytest.approx([-0.005, -0.5, -1.0])
    assert stats["clipped"] == 1
    _, grad, _ = one(Cispo(clip_low=0.5), [0.01, 1.0, 3.0], 0.5)
    assert grad == pytest.approx([-0.25, -0.5, -1.0])


def test_rloo_by_hand() -> None:
    value, grad, stats = one(Rloo(), [2.0, 0.5], 3.0)
    assert value == pytest.approx(0.0)
    assert grad == [-3.0, -3.0]
    assert stats["logratio"] == pytest.approx(0.0)


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "cispo"])
def test_gradients_are_those_of_the_value(name: str) -> None:
    """By central differences, off-policy, between the kinks. CISPO's value is not what its gradient descends."""
    goal = OBJECTIVES[name]()
    logits, x = inputs(goal, REWARDS, drift=0.3)
    tokens = setup_policy()[1]

    def value(at: torch.Tensor) -> float:
        return float(goal.loss(replace(x, logprobs_B_L=logprobs(at, tokens)))[0])

    grad = gradient(goal, REWARDS, drift=0.3)
    for row, column in ((0, 0), (1, 3), (2, 6), (3, 2)):
        step = torch.zeros_like(logits)
        step[row, column] = 1e-6
        numeric = (value(logits.detach() + step) - value(logits.detach() - step)) / 2e-6
        assert numeric == pytest.approx(float(grad[row, column]), abs=1e-7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_add_up(name: str) -> None:
    """Loss, gradient and every statistic of the whole are the sums over its rows."""
    goal = OBJECTIVES[name]()
    logits, x = inputs(goal, REWARDS, drift=0.5)
    whole, stats = goal.loss(x)
    rows = [LossInputs(**{f.name: getattr(x, f.name)[i : i + 1] for f in fields(x)}) for i in range(K)]
    parts = [goal.loss(row) for row in rows]
    total = torch.stack([loss for loss, _ in parts]).sum()
    assert torch.allclose(total, whole)
    assert close(torch.autograd.grad(whole, logits, retain_graph=True)[0], torch.autograd.grad(total, logits)[0])
    for key, value in stats.items():
        assert float(value) == pytest.approx(sum(float(s[key]) for _, s in parts)), key


def test_objective_by_name() -> None:
    assert objective({"name": "k2", "tau": 0.3}) == K2(0.3)
    assert objective({"name": "k2"}) == K2()
    assert objective({"name": "dapo", "clip_high": "0.3", "drop_even": False}) == Dapo(clip_high=0.3, drop_even=False)
    for name, cls in OBJECTIVES.items():
        assert objective({"name": name}) == cls()
        assert objective(settings({"name": name})) == cls()


@pytest.mark.parametrize(("name", "option"), [(n, f.name) for n, c in OBJECTIVES.items() for f in fields(c)])
def test_options_out_of_range_are_named(name: str, option: str) -> None:
    if option == "drop_even":
        with pytest.raises(UserError, match=r"objective\.drop_even: Value 'perhaps'"):
            objective({"name": name, option: "perhaps"})
        return
    for value in (0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match=rf"^objective\.{option} is .*: it must be above 0$"):
            objective({"name": name, option: value})
