"""Engine against trainer: what is measured, by hand and on engines that are wrong by a known amount; what the
correction does to coefficients, to an expected gradient, and in whole runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from k2rl import mismatch
from k2rl.batch import Batch, batches
from k2rl.losses import LossInputs
from k2rl.losses.k2 import K2
from k2rl.protocols import Request
from k2rl.recipe import OptimConfig, TrainerConfig
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.trainers.torch_trainer import TorchTrainer
from k2rl.types import End, Rollout, ScoredGroup, Segment, Task

PROMPT = (30, 31, 32)


def policy(*logprobs: float, version: int = 0) -> Segment:
    return Segment("policy", tuple(range(20, 20 + len(logprobs))), logprobs, version=version)


def rollout(*segments: Segment) -> Rollout:
    return Rollout(Task("p", env="e"), 0, PROMPT, segments, End.STOP)


def batch_of(*rollouts: Rollout) -> Batch:
    """One group; each rollout has the coefficient 1 / rollouts."""
    zeros = (0.0,) * len(rollouts)
    (batch,) = batches([ScoredGroup(Task("p", env="e"), rollouts, zeros, zeros)], K2(), 1, [None], pad_id=0)
    return batch


def rows(*values: Sequence[float]) -> list[NDArray[np.float32]]:
    return [np.array(row, dtype=np.float32) for row in values]


def test_gaps_by_hand() -> None:
    """Of version 4: differences 0.5, 0, -0.25 and 0.125; two of six tokens are older, by whatever they differ."""
    tool = Segment("env", (7, 8))
    first = batch_of(rollout(policy(-9.0, -9.0, version=3), tool, policy(-1.0, -2.0, version=4)))
    second = batch_of(rollout(policy(-1.5, version=4)), rollout(policy(-0.5, version=4)))
    own = [rows([-1.0, -2.0, -0.5, -2.0]), rows([-1.75], [-0.375])]
    found = mismatch.gaps([first, second], own, version=4, bound=0.2)
    k3 = [math.exp(d) - 1 - d for d in (0.5, 0.0, -0.25, 0.125)]
    assert found == pytest.approx(
        {
            "mismatch/mean": 0.875 / 4,
            "mismatch/max": 0.5,
            "mismatch/over": 0.5,
            "mismatch/kl": sum(k3) / 4,
            "mismatch/stale": 2 / 6,
        }
    )


def test_where_every_token_is_stale_nothing_else_is_said() -> None:
    assert mismatch.gaps([batch_of(rollout(policy(-1.0)))], [rows([-2.0])], 1, 0.1) == {"mismatch/stale": 1.0}


def test_weights_by_hand() -> None:
    """Products of ratios 3/4 x 2 = 3/2, 1/4 and 3 x 5 x 1 = 15, cut at 2; stale tokens are in them, others are not."""
    batch = batch_of(
        rollout(policy(-1.0, version=3), Segment("env", (7, 8)), policy(-2.0, version=4)),
        rollout(policy(-1.0)),
        rollout(policy(-3.0, -3.0, -3.0)),
    )
    own = rows(
        [-1.0 + math.log(3 / 4), -2.0 + math.log(2)],
        [-1.0 + math.log(1 / 4)],
        [-3.0 + math.log(3), -3.0 + math.log(5), -3.0],
    )
    made, log_weights_B = mismatch.truncated(batch, own, cap=2.0)
    assert made.coefficients_B.tolist() == pytest.approx([1.5 / 3, 0.25 / 3, 2 / 3])
    assert log_weights_B.tolist() == pytest.approx([math.log(3 / 2), math.log(1 / 4), math.log(15)], abs=1e-6)
    for row, (old_L, mask_L) in zip(own, zip(made.old_logprobs_B_L, made.mask_B_L.bool(), strict=True), strict=True):
        assert old_L[mask_L].tolist() == row.tolist()
        assert not old_L[~mask_L].any()
    unchanged = replace(made, old_logprobs_B_L=batch.old_logprobs_B_L, coefficients_B=batch.coefficients_B)
    assert unchanged == batch
    assert mismatch.weights(log_weights_B, cap=2.0) == pytest.approx(
        {"correction/mean": 3.75 / 3, "correction/min": 0.25, "correction/cut": 1 / 3}
    )


def test_a_response_that_the_engine_thought_impossible_does_not_overflow() -> None:
    made, _ = mismatch.truncated(batch_of(rollout(policy(-500.0, -500.0))), rows([-1.0, -1.0]), cap=2.0)
    assert made.coefficients_B.tolist() == [2.0]


def sampled(model: Any, n: int, told: float = 1.0) -> list[Rollout]:
    """From an engine that samples and reports at T = 1 whatever it is `told`."""
    sampler = TorchSampler(model, pad_id=0)
    sampler.submit([Request("r", PROMPT, tuple(range(n)), 40, 1.0, frozenset())])
    found: list[Rollout] = []
    while len(found) < n:
        found += [rollout(Segment("policy", c.ids, c.logprobs, told)) for c in sampler.poll()]
    return found


def measure(model: Any, rollouts: Sequence[Rollout]) -> dict[str, float]:
    batch = batch_of(*rollouts)
    trainer = TorchTrainer(model, K2(), OptimConfig(), 400)
    return mismatch.gaps([batch], [trainer.log_probs(batch)], 0, 0.1)


def test_an_engine_that_is_right_differs_by_rounding(tiny_model: Any) -> None:
    found = measure(tiny_model, sampled(tiny_model, 20))
    assert 0 < found["mismatch/max"] < 1e-4
    assert found["mismatch/over"] == found["mismatch/stale"] == 0


@torch.no_grad()
def test_a_wrong_temperature_is_measured_at_its_size(tiny_model: Any) -> None:
    rollouts = sampled(tiny_model, 20, told=0.7)
    gaps, divergences = [], []
    for r in rollouts:
        ids = torch.tensor([[*PROMPT, *r.segments[0].ids]])
        logits = tiny_model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1]
        hot, cold = logits.log_softmax(-1), (logits / 0.7).log_softmax(-1)
        gaps.append((hot - cold).gather(1, ids[0, len(PROMPT) :, None]).abs())
        divergences.append((hot.exp() * (hot - cold)).sum(-1))
    found, gap = measure(tiny_model, rollouts), torch.cat(gaps)
    assert found["mismatch/mean"] == pytest.approx(float(gap.mean()), rel=1e-4)
    assert found["mismatch/max"] == pytest.approx(float(gap.max()), rel=1e-4)
    assert found["mismatch/over"] == pytest.approx(float((gap > 0.1).float().mean()), abs=2 / gap.numel())
    # The exact KL along these texts; the metric estimates it from the sampled tokens alone.
    assert found["mismatch/kl"] == pytest.approx(float(torch.cat(divergences).mean()), rel=0.15)


def test_noise_in_recorded_log_probs_is_measured_at_its_size(tiny_model: Any) -> None:
    draw = np.random.default_rng(0)

    def noisy(r: Rollout) -> Rollout:
        said = r.segments[0]
        logprobs = tuple((np.array(said.logprobs) + draw.normal(0, 0.05, len(said.ids))).tolist())
        return replace(r, segments=(replace(said, logprobs=logprobs),))

    found = measure(tiny_model, [noisy(r) for r in sampled(tiny_model, 100)])
    assert found["mismatch/mean"] == pytest.approx(0.05 * math.sqrt(2 / math.pi), rel=0.05)
    assert found["mismatch/over"] == pytest.approx(math.erfc(2 / math.sqrt(2)), rel=0.15)
    assert found["mismatch/kl"] == pytest.approx(0.05**2 / 2, rel=0.05)


def test_the_first_update_after_a_correction_begins_at_a_log_ratio_of_zero(tiny_model: Any) -> None:
    batch = batch_of(*sampled(tiny_model, 20, told=0.7))
    trainer = TorchTrainer(tiny_model, K2(), OptimConfig(), 400)
    assert abs(trainer.accumulate(batch)["loss/logratio"]) > 0.1
    made, _ = mismatch.truncated(batch, trainer.log_probs(batch), 2.0)
    assert float(trainer.accumulate(made)["loss/logratio_sq"]) < 1e-9


STOP, WORDS = 0, (0, 1, 2)
SAYABLE = [(STOP,), *((a, b) for a in WORDS[1:] for b in WORDS)]
"""Everything a policy of three words can say in two of them; the first word may stop it."""
WORTH = [1.0, 0.0, 0.2, 0.9, 0.4, 1.0, 0.1]


def told_log_probs(logits_V_V: torch.Tensor, said: Sequence[int]) -> torch.Tensor:
    """Each word by the one before it; the prompt is word 0."""
    return torch.stack([logits_V_V[a].log_softmax(-1)[b] for a, b in zip((0, *said[:-1]), said, strict=True)])


def expected_gradient(logits: torch.Tensor, sampler: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Of K2's loss on pairs of responses that `sampler` says, over all such pairs, each as probable as it is."""
    goal = K2(tau=0.1)
    told = [told_log_probs(sampler, said).tolist() for said in SAYABLE]
    texts = [
        Rollout(Task("p"), 0, (0,), (Segment("policy", s, tuple(t)),), End.STOP)
        for s, t in zip(SAYABLE, told, strict=True)
    ]
    pairs = [(a, b) for a in range(len(SAYABLE)) for b in range(len(SAYABLE))]
    chances = [math.exp(sum(told[a]) + sum(told[b])) for a, b in pairs]
    assert sum(chances) == pytest.approx(1.0)
    groups = [
        ScoredGroup(Task("p"), (texts[a], texts[b]), (WORTH[a], WORTH[b]), tuple(goal.advantages([WORTH[a], WORTH[b]])))
        for a, b in pairs
    ]
    (batch,) = batches(groups, goal, 1, [None], pad_id=0)
    chances_B = torch.tensor([len(pairs) * chance for chance in chances for _ in range(2)])
    batch = replace(batch, coefficients_B=batch.coefficients_B * chances_B)
    logits = logits.clone().requires_grad_()
    now = [told_log_probs(logits, SAYABLE[i]) for pair in pairs for i in pair]
    if cap is not None:
        batch, _ = mismatch.truncated(batch, [row.detach().numpy() for row in now], cap)
    now_B_L = torch.stack([torch.nn.functional.pad(row, (1, 2 - len(row))) for row in now])
    inputs = LossInputs(now_B_L, batch.old_logprobs_B_L, batch.mask_B_L, batch.advantages_B, batch.coefficients_B)
    (grad,) = torch.autograd.grad(goal.loss(inputs)[0], logits)
    return grad


@pytest.mark.parametrize("wrong", ["weights", "temperature"])
@pytest.mark.parametrize("seed", range(3))
def test_a_correction_brings_the_expected_gradient_back_to_the_on_policy_one(wrong: str, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 3, generator=draw)
    engine = logits / 0.6 if wrong == "temperature" else logits + 0.5 * torch.randn(3, 3, generator=draw)
    right = expected_gradient(logits, logits, None)
    without, cut, whole = (
        float((expected_gradient(logits, engine, cap) - right).norm() / right.norm()) for cap in (None, 2.0, 1e6)
    )
    assert without > 0.05
    assert cut < 0.6 * without
    assert whole < 1e-5


class NotAsked:
    """A trainer that must not be asked."""

    def log_probs(self, batch: Batch) -> list[NDArray[np.float32]]:
        raise AssertionError("an extra forward pass")


def test_a_sampler_of_the_trainers_own_module_is_not_measured_unasked(tiny_model: Any) -> None:
    sampler = TorchSampler(tiny_model, 0, shared=True)
    mini_batches = iter([batch_of(rollout(policy(-1.0)))])
    given, metrics = mismatch.measured(mini_batches, NotAsked(), sampler, TrainerConfig())  # type: ignore[arg-type]
    assert given is mini_batches
    assert metrics == {}


def test_an_engine_of_its_own_is_measured_and_not_corrected_unasked(tiny_model: Any) -> None:
    sampler = TorchSampler(tiny_model, 0)
    trainer = TorchTrainer(tiny_model, K2(), OptimConfig(), 400)
    batch = batch_of(*sampled(tiny_model, 4))
    given, metrics = mismatch.measured(iter([batch]), trainer, sampler, TrainerConfig())
    assert list(given) == [batch]
    keys = {"mismatch/mean", "mismatch/max", "mismatch/over", "mismatch/kl", "mismatch/stale", "time/train_mismatch"}
    assert metrics.keys() == keys


def test_an_iteration_without_groups_that_train_measures_nothing(tiny_model: Any) -> None:
    config = TrainerConfig(correction="truncated")
    given, metrics = mismatch.measured(iter([]), NotAsked(), TorchSampler(tiny_model, 0), config)  # type: ignore[arg-type]
    assert (list(given), metrics) == ([], {})
