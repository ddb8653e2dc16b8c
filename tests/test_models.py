"""Gradient checkpointing: the same gradients, less memory, and nothing for the sampler to notice."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from test_precision import gradients

from k2rl import models
from k2rl.errors import UserError
from k2rl.models import checkpoint_layers
from k2rl.protocols import Completion, Request
from k2rl.recipe import ModelConfig
from k2rl.samplers.torch_sampler import TorchSampler


def saved_bytes(model: Any) -> int:
    """What autograd keeps for the backward pass of one forward pass."""
    storages: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(input_ids=torch.full((4, 32), 30), use_cache=False).logits
    del out
    return sum(storages.values())


@pytest.mark.parametrize("workers", [1, 3])
def test_checkpointing_gives_the_same_gradients(tiny_model: Any, workers: int) -> None:
    plain = copy.deepcopy(tiny_model)
    checkpoint_layers(tiny_model)
    expected = gradients(plain, 20)
    for _ in range(3):
        tiny_model.zero_grad()
        found = gradients(tiny_model, 20, workers)
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, atol=0, rtol=0, msg=name)


def test_checkpointing_keeps_less(tiny_model: Any) -> None:
    before = saved_bytes(tiny_model)
    checkpoint_layers(tiny_model)
    assert saved_bytes(tiny_model) < 0.4 * before


def test_checkpointing_leaves_dropout_off(tiny_model: Any) -> None:
    for layer in tiny_model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    checkpoint_layers(tiny_model)
    first, second = gradients(tiny_model, 50), None
    first = {n: g.clone() for n, g in first.items()}
    tiny_model.zero_grad()
    second = gradients(tiny_model, 50)
    assert all(torch.equal(second[n], g) for n, g in first.items())


def test_sampling_is_untouched(tiny_model: Any) -> None:
    def sampled(model: Any) -> list[tuple[int, ...]]:
        sampler = TorchSampler(model, 0, slots=4)
        sampler.submit([Request("r", (30, 40, 50), (1, 2, 3), 8, 1.0, frozenset())])
        found: list[Completion] = []
        while len(found) < 3:
            found += sampler.poll()
        return [c.ids for c in sorted(found, key=lambda c: c.index)]

    plain = sampled(copy.deepcopy(tiny_model))
    checkpoint_layers(tiny_model)
    assert sampled(tiny_model) == plain


def test_a_model_whose_layers_are_not_known_is_refused() -> None:
    class Odd(torch.nn.Linear):
        config = type("Config", (), {"model_type": "odd"})

    with pytest.raises(UserError, match="gradient_checkpointing: odd does not say"):
        checkpoint_layers(Odd(2, 2))


def test_a_model_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a dozen retries of the client's beside it."""
    hub = logging.getLogger("huggingface_hub")
    seen: list[logging.LogRecord] = []
    monkeypatch.setattr(hub, "handle", seen.append)

    def unreachable(*_: Any, **__: Any) -> Any:
        hub.warning("Retrying in 8s [Retry 5/5].")
        raise OSError("no network")

    for part in ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"):
        monkeypatch.setattr(getattr(models, part), "from_pretrained", unreachable)
    before = hub.level
    hub.setLevel(logging.WARNING)
    try:
        with pytest.raises(UserError, match=r"model\.path=foo/bar"):
            models.load_policy(ModelConfig(path="foo/bar", device="cpu"))
    finally:
        hub.setLevel(before)
    assert not seen


@pytest.mark.parametrize(("kind", "most"), [("longrope", 64), ("dynamic", 64), ("yarn", 256)])
def test_positions_that_depend_on_the_longest_row_are_not_used(kind: str, most: int) -> None:
    from transformers import LlamaConfig

    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64, **factors}
    config = LlamaConfig(head_dim=8, max_position_embeddings=256, rope_parameters=rope)
    assert models.context_length(config) == most
