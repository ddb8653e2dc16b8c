"""bfloat16 weights with float32 masters: tiny updates add up, gradients are close to float32's, a reset keeps them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from k2rl.batch import Example, micro_batches, text_batch
from k2rl.optim.model_optimizer import ModelOptimizer
from k2rl.recipe import OptimConfig
from k2rl.trainers.gradients import Gradients
from k2rl.trainers.logprobs import TokenLogProbs
from k2rl.trainers.terms import text_loss


def texts() -> Any:
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(20, 300, (n,), generator=draw).tolist() for n in (9, 14, 5, 20, 11, 8, 17, 12)]
    return text_batch([Example(tuple(row), 2) for row in rows], 1.0, 0)


def gradients(model: Any, micro_tokens: int, workers: int = 1) -> dict[str, torch.Tensor]:
    adder, logprobs = Gradients(model, workers), TokenLogProbs(model)
    parts = micro_batches(texts(), micro_tokens, logprobs.packed)
    adder.add(parts, lambda part: (text_loss(logprobs, part), {}), {})
    adder.close()
    return {name: p.grad for name, p in model.named_parameters()}


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Relative error of all gradients as one vector."""
    error = sum(float((found[n].double() - g.double()).square().sum()) for n, g in expected.items())
    return float((error / sum(float(g.double().square().sum()) for g in expected.values())) ** 0.5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_tiny_updates_move_bfloat16_weights_as_they_move_float32_ones(tiny_model: Any, name: str) -> None:
    exact = tiny_model.to(torch.bfloat16).float()
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    without = copy.deepcopy(rounded)
    config = OptimConfig(name=name, grad_clip=0.0)
    optimizers = [ModelOptimizer(m, config) for m in (exact, rounded)]
    naive = torch.optim.AdamW(without.parameters(), lr=3e-5, weight_decay=0.0)
    start = {n: p.detach().clone() for n, p in exact.named_parameters()}
    draw = torch.Generator().manual_seed(1)
    directions = {n: torch.randn(p.shape, generator=draw) for n, p in exact.named_parameters()}
    for _ in range(100):
        for model in (exact, rounded, without):
            for n, p in model.named_parameters():
                p.grad = directions[n].to(p.grad_dtype)
        for optimizer in optimizers:
            optimizer.update(3e-5)
        naive.step()
    masters = optimizers[1].tensors()
    for n, p in exact.named_parameters():
        torch.testing.assert_close(masters[f"master.{n}"], p, atol=0, rtol=0, msg=n)
        assert torch.equal(rounded.get_parameter(n), p.to(torch.bfloat16)), n
    far = {n: p for n, p in exact.named_parameters() if not torch.equal(p.to(torch.bfloat16).float(), start[n])}
    assert len(far) == len(start), "100 updates of 3e-5 are more than half a step of bfloat16 somewhere in every tensor"
    stuck = sum(int((p.float() == start[n]).sum()) for n, p in without.named_parameters())
    assert stuck > 0.7 * sum(p.numel() for p in start.values()), "without masters all but the smallest weights stay"


@pytest.mark.parametrize("micro_tokens", [20, 10_000])
def test_gradients_are_close_to_float32s_also_over_many_micro_batches(tiny_model: Any, micro_tokens: int) -> None:
    exact = tiny_model.to(torch.bfloat16).float()
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    ModelOptimizer(rounded, OptimConfig())
    found = gradients(rounded, micro_tokens)
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert distance(found, gradients(exact, 10_000)) < 0.03


def test_workers_change_nothing(tiny_model: Any) -> None:
    model = tiny_model.to(torch.bfloat16)
    ModelOptimizer(model, OptimConfig())
    alone = {n: g.clone() for n, g in gradients(model, 20).items()}
    model.zero_grad()
    together = gradients(model, 20, workers=3)
    assert all(torch.equal(together[n], g) for n, g in alone.items())


def test_a_reset_drops_the_moments_and_keeps_the_masters(tiny_model: Any) -> None:
    optimizer = ModelOptimizer(tiny_model.to(torch.bfloat16), OptimConfig())
    for p in tiny_model.parameters():
        p.grad = torch.ones_like(p, dtype=torch.float32)
    optimizer.update(1e-5)
    before = {n: t.clone() for n, t in optimizer.tensors().items() if n.startswith("master.")}
    optimizer.reset()
    after = optimizer.tensors()
    assert after.keys() == before.keys(), "moments are gone"
    assert all(torch.equal(after[n], t) for n, t in before.items())
