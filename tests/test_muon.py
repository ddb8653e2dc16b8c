"""Muon equals torch's own with the RMS-matching scale, matrix by matrix, also where a weight holds several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers

from k2rl.errors import UserError
from k2rl.optim import muon
from k2rl.optim.matrices import Split, hidden_matrices
from k2rl.optim.model_optimizer import ModelOptimizer
from k2rl.optim.muon import Muon, newton_schulz
from k2rl.recipe import OptimConfig

SMALL = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4}
EXPERTS = {**SMALL, "num_key_value_heads": 2, "num_local_experts": 3, "num_experts_per_tok": 2}


def steps(
    start: Sequence[torch.Tensor], make: Callable[[list[torch.Tensor]], torch.optim.Optimizer]
) -> list[torch.Tensor]:
    """Where an optimizer takes these weights in four steps, given the same gradients each time."""
    draw = torch.Generator().manual_seed(7)
    weights = [torch.nn.Parameter(t.clone()) for t in start]
    optimizer = make(list(weights))
    for _ in range(4):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=draw)
        optimizer.step()
    return [w.detach() for w in weights]


def random(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=draw) for s in shapes]


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32), (8, 96)], ids=["wide", "tall", "square", "very-wide"])
@pytest.mark.parametrize(("float32", "tolerance"), [(True, 1e-4), (False, 0.02)])
def test_equals_torch_optim_muon(
    shape: tuple[int, int], decay: float, float32: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's iteration runs in bfloat16; made to run in float32 it is the same, else the same up to its rounding."""
    if float32:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    start = random(shape, (16, 48), shape)
    settings: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "weight_decay": decay}
    ours = steps(start, lambda w: Muon(w, **settings))
    theirs = steps(start, lambda w: torch.optim.Muon(w, adjust_lr_fn="match_rms_adamw", **settings))
    for a, b, t in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < tolerance * (b - t).norm()


def test_stacking_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    start = random((6, 8), (3, 6, 8), (6, 8), (6, 8))
    whole = steps(start, lambda w: Muon(w, lr=0.02))
    for limit in (1, 100):
        monkeypatch.setattr(muon, "_STACK", limit)
        for a, b in zip(steps(start, lambda w: Muon(w, lr=0.02)), whole, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("split", "shape"),
    [
        (Split(), (3, 8, 6)),
        (Split(-2, (4, 4)), (3, 8, 6)),
        (Split(-1, (3, 3), by_turns=True), (3, 8, 6)),
        (Split(-2, (8, 4, 4)), (16, 6)),
        (Split(-1, (5, 5, 5)), (6, 15)),
    ],
)
def test_a_weight_of_several_matrices_moves_as_they_would_alone(split: Split, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    fused, grad = torch.nn.Parameter(torch.randn(shape)), torch.randn(shape)
    parts = [
        torch.nn.Parameter(m.clone()) for part in split(fused.detach()) for m in part.reshape(-1, *part.shape[-2:])
    ]
    assert sum(p.numel() for p in parts) == fused.numel()
    matrices = [m for part in split(grad) for m in part.reshape(-1, *part.shape[-2:])]
    optimizers = [Muon({fused: split}, lr=0.1, weight_decay=0.1), Muon(parts, lr=0.1, weight_decay=0.1)]
    for _ in range(2):
        fused.grad = grad.clone()
        for part, matrix in zip(parts, matrices, strict=True):
            part.grad = matrix.clone()
        for optimizer in optimizers:
            optimizer.step()
    moved = [m for part in split(fused.detach()) for m in part.reshape(-1, *part.shape[-2:])]
    for a, b in zip(moved, parts, strict=True):
        torch.testing.assert_close(a, b.detach())


def splits(model: Any) -> dict[str, Split]:
    names = {id(p): n.removeprefix("model.").removeprefix("layers.0.") for n, p in model.named_parameters()}
    return {names[id(p)]: split for p, split in hidden_matrices(model).items()}


def test_experts_fall_into_gate_up_and_down() -> None:
    found = splits(transformers.MixtralForCausalLM(transformers.MixtralConfig(**EXPERTS)))
    assert found["mlp.experts.gate_up_proj"] == Split(-2, (24, 24))
    assert found["mlp.experts.down_proj"] == found["self_attn.q_proj.weight"] == Split()
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in found)


def test_experts_kept_transposed_and_by_turns() -> None:
    found = splits(transformers.GptOssForCausalLM(transformers.GptOssConfig(**EXPERTS, head_dim=8)))
    assert found["mlp.experts.gate_up_proj"] == Split(-1, (24, 24), by_turns=True)
    assert not any("bias" in name or "sinks" in name for name in found)


def test_the_split_is_what_the_model_computes_with() -> None:
    """Gate and up of GPT-OSS are every other column, of Mixtral the two halves of the rows."""
    experts = (
        transformers.GptOssForCausalLM(transformers.GptOssConfig(**EXPERTS, head_dim=8)).model.layers[0].mlp.experts
    )
    columns = torch.arange(48.0).expand(3, 32, 48)
    gate, up = Split(-1, (24, 24), by_turns=True)(columns)
    assert not experts.is_concatenated
    assert torch.equal(gate, columns[..., ::2])
    assert torch.equal(up, columns[..., 1::2])
    rows = columns.mT
    assert all(torch.equal(a, b) for a, b in zip(Split(-2, (24, 24))(rows), rows.chunk(2, dim=-2), strict=True))


def test_query_key_and_value_in_one_weight() -> None:
    phi = splits(transformers.Phi3ForCausalLM(transformers.Phi3Config(**SMALL, num_key_value_heads=2, pad_token_id=0)))
    assert phi["self_attn.qkv_proj.weight"] == Split(-2, (32, 16, 16))
    assert phi["mlp.gate_up_proj.weight"] == Split(-2, (24, 24))
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=48, n_positions=16)
    gpt2 = splits(transformers.GPT2LMHeadModel(config))
    assert gpt2["transformer.h.0.attn.c_attn.weight"] == Split(-1, (32, 32, 32))
    assert not any("wpe" in name for name in gpt2), "positions are embedded too"


def test_an_unknown_order_is_refused() -> None:
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SMALL))
    with pytest.raises(UserError, match=r"gpt_neox keeps several projections in one weight \(query_key_value\)"):
        ModelOptimizer(model, OptimConfig(name="muon"))
    ModelOptimizer(model, OptimConfig(name="adamw"))


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
