"""LoRA against the plain path: what is trained, what is published, what is saved."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from k2rl import lora, recipe_files
from k2rl.batch import Example, text_batch
from k2rl.errors import UserError
from k2rl.losses.k2 import K2
from k2rl.models import load_policy, save_policy
from k2rl.optim.model_optimizer import ModelOptimizer
from k2rl.recipe import LoraConfig, ModelConfig, OptimConfig, Recipe
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.trainers.logprobs import TokenLogProbs
from k2rl.trainers.terms import text_loss
from k2rl.trainers.torch_trainer import TorchTrainer

pytest.importorskip("peft", reason="the extra lora is not installed")

IDS = torch.randint(20, 300, (3, 12), generator=torch.Generator().manual_seed(5))


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits.float().log_softmax(-1)
    return found


def adapted(model: Any, spread: float = 0.05, **settings: Any) -> Any:
    """The model with adapters that have been moved away from doing nothing."""
    lora.attach(model, LoraConfig(**{"rank": 4, **settings}), seed=0)
    draw = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = (torch.randn(parameter.shape, generator=draw) * spread).to(parameter.dtype)
    return model


def plain_of(model: Any, like: Any) -> Any:
    """A plain model with the published weights of an adapted one."""
    TorchSampler(like, 0).publish(lora.full_weights(model), 1)
    return like


def test_new_adapters_change_nothing_and_depend_on_the_seed_alone(tiny_model: Any) -> None:
    first, second, other = (copy.deepcopy(tiny_model) for _ in range(3))
    for model, seed in ((first, 1), (second, 1), (other, 2)):
        torch.manual_seed(seed + 10)
        lora.attach(model, LoraConfig(), seed)
        assert torch.equal(logprobs(model), logprobs(tiny_model))
    a, b, c = (dict(m.named_parameters()) for m in (first, second, other))
    assert all(torch.equal(b[n], p) for n, p in a.items())
    assert any(not torch.equal(c[n], p) for n, p in a.items())


@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "down_proj"]])
def test_merged_weights_say_what_the_adapters_say(tiny_model: Any, modules: Any) -> None:
    plain = copy.deepcopy(tiny_model)
    before = logprobs(plain)
    model = adapted(tiny_model, modules=modules)
    assert (logprobs(model) - before).abs().max() > 0.1
    names = [name for name, _ in lora.full_weights(model)]
    assert names == [name for name, _ in plain.named_parameters()]
    torch.testing.assert_close(logprobs(plain_of(model, plain)), logprobs(model), atol=2e-5, rtol=1e-5)


def test_merged_bfloat16_weights_are_the_float32_sum_rounded_once(tiny_model: Any) -> None:
    plain = copy.deepcopy(tiny_model).to(torch.bfloat16)
    model = adapted(tiny_model.to(torch.bfloat16))
    owner = model.model.layers[0].mlp.up_proj
    a, b = owner.lora_A.default.weight.float(), owner.lora_B.default.weight.float()
    exact = owner.base_layer.weight.float() + 8 * b @ a
    merged = dict(lora.full_weights(model))["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(merged, exact.to(torch.bfloat16))
    assert (logprobs(plain_of(model, plain)) - logprobs(model)).abs().mean() < 0.05


def test_only_adapters_are_trained_and_every_one_of_them(tiny_model: Any) -> None:
    model = adapted(tiny_model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = ModelOptimizer(model, OptimConfig())
    text = text_batch([Example(tuple(row), 1) for row in IDS.tolist()], 1.0, 0)
    text_loss(TokenLogProbs(model), text).backward()  # type: ignore[no-untyped-call]
    optimizer.update(1e-3)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if ".lora_" in n}
    assert {key.partition(".")[2] for key in optimizer.tensors()} == moved


def test_a_step_on_the_adapters_descends_where_the_weights_gradient_points(tiny_model: Any) -> None:
    """At B = 0 a gradient step moves W by -lr s^2 grad(W) A'A: with A orthogonal and of full rank, along the gradient
    itself."""
    plain = copy.deepcopy(tiny_model)
    text = text_batch([Example(tuple(row), 1) for row in IDS.tolist()], 1.0, 0)
    text_loss(TokenLogProbs(plain), text).backward()  # type: ignore[no-untyped-call]
    expected = plain.model.layers[1].self_attn.v_proj.weight.grad
    lora.attach(tiny_model, LoraConfig(rank=64, alpha=64, modules=["v_proj"]), seed=0)
    owner = tiny_model.model.layers[1].self_attn.v_proj
    with torch.no_grad():
        owner.lora_A.default.weight.copy_(torch.eye(64))
    text_loss(TokenLogProbs(tiny_model), text).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(owner.lora_B.default.weight.grad, expected, atol=1e-7, rtol=1e-4)


def test_a_shared_sampler_needs_no_publishing(tiny_model: Any) -> None:
    """Nothing is merged for the sampler of this process: the tensors are not even asked for."""
    sampler = TorchSampler(tiny_model, 0, shared=True)
    sampler.publish((pytest.fail("merged for nothing") for _ in range(1)), 3)
    assert sampler.version == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_holds_adapters_alone_and_continues_bit_for_bit(
    tiny_model: Any, tmp_path: Path, dtype: torch.dtype
) -> None:
    from safetensors.torch import load_file
    from test_torch_trainer import one_batch

    base = copy.deepcopy(tiny_model.to(dtype))
    trainer = TorchTrainer(adapted(tiny_model), K2(), OptimConfig(), 4096)
    trainer.step(one_batch(K2()), lr=1e-3)
    trainer.save(tmp_path)
    assert all(".lora_" in name for file in tmp_path.iterdir() for name in load_file(file))
    trainer.step(one_batch(K2()), lr=1e-3)
    again = TorchTrainer(adapted(base, spread=1.0), K2(), OptimConfig(), 4096)
    again.load(tmp_path)
    again.step(one_batch(K2()), lr=1e-3)
    expected = dict(trainer.model.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in again.model.named_parameters())


def test_the_saved_folder_is_plain_and_its_adapter_fits_the_base(
    tiny_folder: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    model = adapted(load_policy(ModelConfig(path=str(tiny_folder))).model)
    save_policy(model, tiny_tokenizer, tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert not lora.has_adapters(merged)
    torch.testing.assert_close(logprobs(merged), logprobs(model), atol=2e-5, rtol=1e-5)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    beside = peft.PeftModel.from_pretrained(base, tmp_path / "model" / "adapter")
    torch.testing.assert_close(logprobs(beside), logprobs(model), atol=2e-5, rtol=1e-5)


def test_muon_updates_the_two_factors(tiny_model: Any) -> None:
    model = adapted(tiny_model)
    optimizer = ModelOptimizer(model, OptimConfig(name="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.update(1e-3)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(optimizer.tensors()) == {f"momentum.{n}" for n in names}


def test_modules_a_model_does_not_have_are_named_with_those_it_has(tiny_folder: Path) -> None:
    config = ModelConfig(path=str(tiny_folder), lora=LoraConfig(modules=["q_proj", "c_attn", "lm_head"]))
    with pytest.raises(UserError) as caught:
        load_policy(config)
    assert str(caught.value) == (
        "model.lora.modules: llama has no linear layer c_attn, lm_head: "
        "it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )


def test_without_peft_the_command_that_installs_it_is_named(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setattr(lora, "find_spec", lambda name: None if name == "peft" else find(name))
    with pytest.raises(UserError, match=r'^model.lora needs peft: pip install "k2rl\[lora\]"$'):
        load_policy(ModelConfig(path=str(tiny_folder), lora=LoraConfig()))


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.lora.rank=0", "model.lora.rank is 0"),
        ("model.lora.alpha=0", "model.lora.alpha"),
        ("model.lora.modules=q_proj", "model.lora.modules is 'q_proj'"),
        ("model.lora.modules=[]", "model.lora.modules"),
        ("model.lora.dropout=0.1", "unknown key model.lora.dropout"),
    ],
)
def test_settings_out_of_range(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says.replace("[", r"\[")):
        recipe_files.resolve(Recipe, {"envs": {"m": {"id": "math"}}}, [override])
