"""The arithmetic in the comments of the recipes for GPUs: what the model's published config makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from transformers import Qwen2Config

from k2rl import assets, memory, recipe_files
from k2rl.memory import GIB, Lengths
from k2rl.recipe import Recipe
from k2rl.trainers.logprobs import CHUNK

GPU = 80 * GIB
LENGTHS = Lengths(prompt=256, response=1024)
STEP = 4 * GIB
"""The guess of what an engine needs beside weights, keys and values."""


@dataclass(frozen=True)
class Model:
    """Of a Qwen2.5 config.json."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    head: int = 128

    @property
    def parameters(self) -> int:
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        attention = self.hidden * (queries + 2 * keys) + queries + 2 * keys + queries * self.hidden
        layer = attention + 3 * self.hidden * self.inner + 2 * self.hidden
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer + self.hidden

    @property
    def cache_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head * 2

    def config(self) -> Qwen2Config:
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            tie_word_embeddings=self.tied,
        )


MODELS = {
    "gpu_vllm": Model(1536, 8960, 28, 12, 2, 151_936, tied=True),
    "gpu_8x": Model(3584, 18_944, 28, 28, 4, 152_064, tied=False),
    "gpu_two_nodes": Model(5120, 13_824, 48, 40, 8, 152_064, tied=False),
}
RECIPES = pytest.mark.parametrize("name", sorted(MODELS))
SHARDED = pytest.mark.parametrize("name", ["gpu_8x", "gpu_two_nodes"])


def loaded(name: str) -> Recipe:
    return recipe_files.load(Recipe, name, ["model.path=some/path", "envs.gsm8k.args.data=some/path"])


def words(name: str) -> str:
    """The comments as one line of text with single spaces."""
    lines = assets.recipe(name).read_text(encoding="utf-8").splitlines()
    return " ".join(" ".join(line.lstrip("# ") for line in lines if line.startswith("#")).split())


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


@RECIPES
def test_what_a_trainer_holds(name: str) -> None:
    said, recipe, n = words(name), loaded(name), MODELS[name].parameters
    ranks, sharded = recipe.trainer.ranks or 1, recipe.trainer.backend == "deepspeed"
    billions, over = f"{n / 1e9:.2f} B", f" / {ranks}" if sharded else ""
    assert f"({billions} parameters" in said
    assert f"weights {billions} x 2 bytes (bfloat16){over} {gib(2 * n / ranks)}" in said
    assert f"masters {billions} x 4 bytes (float32){over} {gib(4 * n / ranks)}" in said
    assert f"moments {billions} x 8 bytes (AdamW){over} {gib(8 * n / ranks)}" in said
    if sharded:
        assert f"gradients {billions} x 4 bytes (float32){over} {gib(4 * n / ranks)}" in said
        assert f"x 8 bytes{over} = {gib(8 * n / ranks)}" in said
        assert f"5e8 x 2 bytes {gib(2 * (memory._GATHERED + memory._REDUCED))}" in said
    else:
        assert f"gradients {billions} x 4 bytes (float32) {gib(4 * n)}" in said


@RECIPES
def test_what_a_micro_batch_takes(name: str) -> None:
    said, recipe, model = words(name), loaded(name), MODELS[name]
    tokens = recipe.trainer.micro_batch_tokens
    assert recipe.trainer.gradient_checkpointing
    assert f"one micro-batch of {tokens:,} tokens, checkpointed" in said
    inputs = f"{model.layers} x {tokens:,} x {model.hidden:,} x 2 bytes"
    assert f"{inputs}, {gib(model.layers * tokens * model.hidden * 2)}" in said
    assert CHUNK["cuda"] == 1 << 26
    assert "2^26 logits in float32, 0.25 GiB" in said


@RECIPES
def test_what_an_engine_takes(name: str) -> None:
    said, recipe, model = words(name), loaded(name), MODELS[name]
    share = recipe.rollout.engine_args["gpu_memory_utilization"] * GPU
    weights, token, slots = 2 * model.parameters, model.cache_token, recipe.rollout.slots
    left, needed = share - weights - STEP, slots * LENGTHS.whole * token
    assert f"gpu_memory_utilization x 80 GiB {gib(share)}" in said
    assert f"its weights {gib(weights)}, a step of 8,192 tokens and CUDA graphs {STEP // GIB} GiB (a guess)" in said
    assert f"and the rest, {gib(left)}" in said
    terms = f"2 x {model.layers} layers x {model.kv_heads} x {model.head} x 2 bytes = {token // 1024} KiB a token"
    assert f"{terms}, {gib(needed)} for {slots} slots of 256 + 1,024 tokens" in said
    assert needed < left


@SHARDED
def test_what_the_machine_and_the_disk_need(name: str) -> None:
    said, recipe, n = words(name), loaded(name), MODELS[name].parameters
    machines = (recipe.trainer.ranks or 1) / 8
    copies, billions = 2 * n, f"{n / 1e9:.2f} B"
    assert f"{billions} x 2 bytes = {gib(copies)}" in said
    assert f"9 x {copies / GIB:.1f} = {gib(9 * copies)}" in said
    half = " / 2" if machines == 2 else ""
    assert f"{billions} x 12 bytes{half} = {gib(2 * copies + 12 * n / machines)}" in said
    model = MODELS[name]
    largest = f"{model.vocabulary:,} x {model.hidden:,} x 2 bytes"
    assert f"{largest} = {gib(model.vocabulary * model.hidden * 2)}" in said
    assert f"{billions} x 14 bytes = {gib(14 * n)}" in said
    assert recipe.run.checkpoints_kept == 2
    assert "three must fit" in said


@RECIPES
def test_it_says_what_was_never_run(name: str) -> None:
    assert "It has not been run on" in words(name)


@SHARDED
def test_an_engine_is_beside_each_rank(name: str) -> None:
    recipe = loaded(name)
    assert recipe.cluster.colocated
    assert recipe.rollout.engines * recipe.rollout.tensor_parallel == recipe.trainer.ranks
    assert recipe.rollout.tasks * recipe.rollout.group_size >= recipe.rollout.engines * recipe.rollout.slots


@pytest.mark.slow
@RECIPES
def test_the_sum_is_the_estimate_and_fits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from the run's own code, with what can't be calculated by hand: a micro-batch."""
    monkeypatch.setattr(memory, "whole_gpu", lambda: GPU)
    said, recipe, model = words(name), loaded(name), MODELS[name]
    found = memory.estimate(recipe, model.config(), LENGTHS, "cuda")
    held: dict[str, Any] = dict(found.held)
    assert held["weights"] == pytest.approx(2 * model.parameters / (recipe.trainer.ranks or 1), rel=1e-4)
    assert held["engines"] == recipe.rollout.engine_args["gpu_memory_utilization"] * GPU
    sharded = recipe.trainer.backend == "deepspeed"
    beside = 2 * (memory._GATHERED + memory._REDUCED) if sharded else 4 * model.parameters
    micro_batch = gib(found.phases["gradients"] - beside)
    assert f"one micro-batch of {recipe.trainer.micro_batch_tokens:,} tokens, checkpointed {micro_batch}" in said
    assert f"allocator keeps (5 %) {gib(found.slack + found.base)}" in said
    assert f"together about {found.peak / GIB:.0f} GiB" in said
    assert found.peak < 0.95 * GPU
