"""Muon equals torch's own with the RMS-matching scale."""

from __future__ import annotations

from typing import Any

import torch

from k2rl.optim.model_optimizer import ModelOptimizer, hidden_matrices
from k2rl.optim.muon import Muon, newton_schulz
from k2rl.recipe import OptimConfig


def test_equals_torch_optim_muon_up_to_its_bfloat16() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(16, 48), (48, 16), (16, 48), (32, 32)]
    start = [torch.randn(s, generator=draw) for s in shapes]
    ours = [torch.nn.Parameter(t.clone()) for t in start]
    theirs = [torch.nn.Parameter(t.clone()) for t in start]
    a = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1)
    b = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn(p.shape, generator=draw)
            q.grad = p.grad.clone()
        a.step()
        b.step()  # type: ignore[no-untyped-call]
    for p, q, t in zip(ours, theirs, start, strict=True):
        moved = (q - t).norm()
        assert (p - q).norm() < 0.02 * moved


def test_newton_schulz_gives_nearly_orthogonal_matrices() -> None:
    stack = torch.randn(3, 24, 8, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(newton_schulz(stack))
    assert 0.6 < float(values.min()) < float(values.max()) < 1.3


def test_only_hidden_matrices_are_muons(tiny_model: Any) -> None:
    names = {id(p): n for n, p in tiny_model.named_parameters()}
    chosen = {names[id(p)] for p in hidden_matrices(tiny_model)}
    assert all("layers" in n and "norm" not in n for n in chosen)
    assert len(chosen) == 2 * 7
    optimizer = ModelOptimizer(tiny_model, OptimConfig(name="muon"))
    for p in tiny_model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.update(1e-3)
    kinds = {k.split(".")[0] for k in optimizer.tensors()}
    assert kinds == {"momentum", "exp_avg", "exp_avg_sq", "step"}
    assert {k.removeprefix("momentum.") for k in optimizer.tensors() if k.startswith("momentum")} == chosen
