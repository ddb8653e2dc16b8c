"""The estimate of a run's memory: exact where it can be counted, and what it depends on."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import Qwen2Config

from k2rl import memory, models
from k2rl.losses import objective
from k2rl.memory import Estimate, Lengths, estimate
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve
from k2rl.trainers.torch_trainer import TorchTrainer

LENGTHS = Lengths(prompt=24, response=40)


def config(layers: int = 2, vocab: int = 1000) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=256,
    )


def recipe(*overrides: str) -> Recipe:
    small = ["rollout.slots=8", "rollout.tasks=8", "rollout.group_size=4", "trainer.micro_batch_tokens=512"]
    return resolve(Recipe, {"envs": {"m": {"id": "math"}}}, [*small, *overrides])


@cache
def estimated(*overrides: str, vocab: int = 1000) -> Estimate:
    return estimate(recipe(*overrides), config(vocab=vocab), LENGTHS, "cpu")


def parameters(of: Any) -> int:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return int(sum(p.numel() for p in AutoModelForCausalLM.from_config(of).parameters()))


def test_what_is_held_is_counted_to_the_byte() -> None:
    n = parameters(config())
    buffers = 2 * 8 * 4  # the rotary frequencies, twice
    full, half = estimated(), estimated("model.dtype=bfloat16")
    assert full.held["weights"] == pytest.approx(4 * n, abs=2 * buffers)
    assert half.held["weights"] == pytest.approx(2 * n, abs=2 * buffers)
    assert (full.held["masters"], half.held["masters"]) == (0, 4 * n)
    assert full.held["moments"] == pytest.approx(8 * n, rel=0.001)
    assert full.held["cache"] == 2 * 2 * 8 * 2 * 16 * 128 * 4  # keys and values, layers, slots, heads, size, columns
    shared, frozen, both = (
        estimated("critic.enabled=true", *more).held["critic"]
        for more in ([], ["critic.weights=copy", "critic.recalibrate=none"], ["critic.weights=copy"])
    )
    assert shared == pytest.approx(8 * n, rel=0.001)
    assert frozen == pytest.approx(4 * n, abs=2 * buffers)
    assert both == pytest.approx(12 * n, rel=0.001)
    assert full.held["critic"] == 0
    assert 0 < estimated("optim.name=muon").held["moments"] < full.held["moments"]


def test_the_gradients_phase_is_what_the_real_trainer_takes() -> None:
    """The same counting over a real model with real numbers."""
    from transformers import AutoModelForCausalLM

    for extra in ([], ["trainer.gradient_checkpointing=true"], ["model.dtype=bfloat16"]):
        chosen = recipe(*extra)
        live = memory._Live()
        with live:
            model = AutoModelForCausalLM.from_config(config(), dtype=models.dtype_named(chosen.model.dtype)).eval()
            if chosen.trainer.gradient_checkpointing:
                models.checkpoint_layers(model)
            trainer = TorchTrainer(model, objective(chosen.objective), chosen.optim, chosen.trainer.micro_batch_tokens)
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
            live.training = True
            with live.phase() as training:
                trainer.accumulate(memory._batch(chosen, LENGTHS))
        gradients = 4 * parameters(config())
        assert estimated(*extra).phases["gradients"] - gradients == pytest.approx(training.peak, rel=0.02)


@pytest.mark.parametrize("extra", [["trainer.gradient_checkpointing=true"], ["model.lora.rank=4"]])
def test_a_deep_model_is_estimated_from_a_few_of_its_layers(monkeypatch: pytest.MonkeyPatch, extra: list[str]) -> None:
    if extra == ["model.lora.rank=4"]:
        pytest.importorskip("peft")
    deep = config(layers=12)
    by_few = estimate(recipe(*extra), deep, LENGTHS, "cpu")
    monkeypatch.setattr(memory, "_TRIED", (4, 12))
    whole = estimate(recipe(*extra), deep, LENGTHS, "cpu")
    assert by_few.tensors == pytest.approx(whole.tensors, rel=0.01)


def test_what_saves_memory_does() -> None:
    pytest.importorskip("peft")
    plain = estimated()
    lora = estimated("model.lora.rank=4")
    assert lora.held["moments"] < plain.held["moments"] / 4
    assert estimated("trainer.gradient_checkpointing=true").phases["gradients"] < plain.phases["gradients"]
    assert estimated("trainer.micro_batch_tokens=256").phases["gradients"] < plain.phases["gradients"]
    assert estimated("rollout.slots=4").held["cache"] == plain.held["cache"] / 2


def test_logits_are_never_there_as_a_whole() -> None:
    """What more tokens take on top does not depend on the vocabulary."""

    def more_tokens(vocab: int) -> int:
        one, two = (
            estimated(f"trainer.micro_batch_tokens={tokens}", vocab=vocab).phases["gradients"] for tokens in (256, 512)
        )
        return two - one

    assert more_tokens(100_000) - more_tokens(1000) < 256 * 100_000 * 4 / 10


def test_workers_each_take_what_one_takes() -> None:
    one, two = estimated(), estimated("trainer.micro_batch_workers=2")
    assert two.phases["gradients"] > 1.9 * one.phases["gradients"]


def on_ranks(stage: int, *more: str, device: str = "cuda") -> Estimate:
    chosen = recipe("trainer.backend=deepspeed", "trainer.ranks=4", f"trainer.zero_stage={stage}", *more)
    return estimate(chosen, config(), LENGTHS, device)


def test_a_rank_holds_its_share() -> None:
    n = parameters(config())
    found = {stage: on_ranks(stage, "model.dtype=bfloat16") for stage in (1, 2, 3)}
    whole, share = 2 * n, pytest.approx(2 * n / 4, rel=0.01)
    assert [round(f.held["weights"], -3) for f in found.values()][:2] == [round(whole, -3)] * 2
    assert found[3].held["weights"] == share
    assert found[1].held["gradients"] == whole
    assert found[2].held["gradients"] == found[3].held["gradients"] == pytest.approx(n, rel=0.01), "in float32"
    for one in found.values():
        assert one.held["masters"] == pytest.approx(n, rel=0.01)
        assert one.held["moments"] == pytest.approx(2 * n, rel=0.01)
        assert "cache" not in one.held, "a sampler that is not vLLM is in the run's own process"
        assert one.checkpoint == pytest.approx(14 * n, rel=0.01), "whole, whatever a rank has of it"
        assert one.where == "each of 4 GPUs"
    assert on_ranks(2).held["masters"] == pytest.approx(n, rel=0.01), "also of float32 weights"
    away = on_ranks(2, "trainer.offload=true")
    assert (away.held["masters"], away.held["moments"], away.held["gradients"]) == (0, 0, 0)
    away = on_ranks(2, "trainer.offload=true", "model.dtype=bfloat16")
    assert away.held["gradients"] == pytest.approx(n, rel=0.01)


def test_on_a_cpu_all_processes_share_the_memory() -> None:
    n = parameters(config())
    found = on_ranks(3, "rollout.engine=vllm", "rollout.engines=2", device="cpu")
    assert found.held["moments"] == pytest.approx(8 * n, rel=0.01)
    assert found.held["driver"] == pytest.approx(4 * n, rel=0.01)
    assert found.held["engines"] == pytest.approx(2 * (memory.GIB + 4 * n), rel=0.01)
    assert found.base == 7 * memory.BASE["cpu"]
    assert found.where == "this process, 4 ranks and 2 engines"


def test_an_engine_has_its_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "whole_gpu", lambda: 10 * memory.GIB)

    def beside(*more: str) -> Estimate:
        return estimate(recipe("rollout.engine=vllm", *more), config(), LENGTHS, "cuda")

    assert beside().held["engines"] == 4 * memory.GIB
    assert beside().held["cache"] == 0
    assert beside("rollout.engine_args={gpu_memory_utilization: 0.25}").held["engines"] == 2.5 * memory.GIB
    assert "engines" not in beside("cluster.colocated=false").held
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert beside("cluster.colocated=false").held["engines"] == 4 * memory.GIB, "there is no other GPU"


def test_what_may_help_ranks() -> None:
    of_ranks = recipe("trainer.backend=deepspeed")
    assert {"trainer.zero_stage=3", "trainer.offload=true"} <= set(memory._changes(of_ranks, LENGTHS, "cuda"))
    assert "trainer.offload=true" not in memory._changes(of_ranks, LENGTHS, "cpu")
    assert not any("zero" in change or "offload" in change for change in memory._changes(recipe(), LENGTHS, "cuda"))
