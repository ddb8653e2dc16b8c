"""The proof that new weights arrived, on samplers that are wrong in one way each."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from k2rl.backends import sampler_of
from k2rl.cluster.machines import ThisMachine
from k2rl.errors import RunError, UserError
from k2rl.losses.k2 import K2
from k2rl.models import Policy, load_policy
from k2rl.protocols import Request
from k2rl.recipe import ModelConfig, OptimConfig, Recipe
from k2rl.recipe_files import load
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.sync import Sync
from k2rl.trainers.torch_trainer import TorchTrainer

pytestmark = pytest.mark.cluster


class Weights(TorchTrainer):
    """A trainer whose updates are noise."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, K2(0.1), OptimConfig(), 2048)

    def update(self) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(0.03 * parameter.std() * torch.randn_like(parameter))


def nano() -> Policy:
    torch.manual_seed(0)
    return load_policy(ModelConfig(path="nano"))


def synced(kind: type[TorchSampler]) -> tuple[Sync, Weights]:
    policy = nano()
    trainer, sampler = Weights(policy.model), kind(copy.deepcopy(policy.model), policy.chat.pad_id)
    return Sync(policy, trainer, sampler, seed=0), trainer


def updates(sync: Sync, trainer: Weights) -> None:
    for version in range(3):
        sync(version)
        trainer.update()


def test_weights_that_arrive() -> None:
    sync, trainer = synced(TorchSampler)
    for version in range(3):
        metrics = sync(version)
        assert metrics["sync/gap"] < 1e-4
        assert metrics.keys() == {"sync/gap", "time/sync_publish", "time/sync_proof"}
        assert sync.sampler.version == version
        trainer.update()


def test_a_sampler_of_the_trainers_own_module_has_nothing_to_prove() -> None:
    policy = nano()
    sampler = TorchSampler(policy.model, policy.chat.pad_id, shared=True)
    assert Sync(policy, Weights(policy.model), sampler, seed=0)(5) == {}
    assert sampler.version == 5


class Dropping(TorchSampler):
    def publish(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        super().publish(((n, t) for n, t in named_tensors if "layers.2.self_attn.v_proj" not in n), version)


class AtOne(TorchSampler):
    def submit(self, requests: Sequence[Request]) -> None:
        super().submit([replace(r, temperature=1.0) for r in requests])


class Remembering(TorchSampler):
    """Answers again what it answered before, as a cache that nobody reset."""

    def score_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> Any:
        if not hasattr(self, "known"):
            self.known = super().score_labels(prompts, label_ids)
        return self.known


class Forgetful(TorchSampler):
    def publish(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        super().publish(named_tensors, max(version - 1, 0))


class Undefined(TorchSampler):
    def score_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> Any:
        return super().score_labels(prompts, label_ids) * float("nan")


class Telling(Dropping):
    """One that can be asked what it holds."""

    answer: dict[str, float] | RunError

    def differing(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, float]:
        assert any("v_proj" in name for name, _ in named_tensors)
        if isinstance(self.answer, RunError):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"a": 0.25}, "is rounding; tensor a differs by 0.25 there$"),
        ({"a": 0.25, "b": 0.5, "c": 0.1}, r"; tensor b differs by 0.5 there \(3 such tensors\)$"),
        ({"a": 0.25, "b": math.inf}, r"; tensor b is not there \(2 such tensors\)$"),
        ({}, "; all weights are equal there, but for rounding: it is a cache, a temperature or the computation$"),
        (RunError("the engine has ended"), "is rounding; asked for its weights, it failed: the engine has ended$"),
    ],
)
def test_a_sampler_that_can_say_what_it_holds_is_asked(
    answer: dict[str, float] | RunError, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, trainer = synced(Telling)
    monkeypatch.setattr(Telling, "answer", answer, raising=False)
    with pytest.raises(RunError, match=told):
        updates(sync, trainer)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Dropping, "did not take effect"),
        (AtOne, "sampled at temperature 0.5"),
        (Remembering, "after a known prompt"),
        (Forgetful, "the sampler says 0"),
        (Undefined, "nan"),
    ],
)
def test_what_is_wrong_is_found(kind: type[TorchSampler], told: str) -> None:
    sync, trainer = synced(kind)
    with pytest.raises(RunError, match=told):
        updates(sync, trainer)


def test_an_engine_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    policy, recipe = nano(), load(Recipe, "quickstart", ["rollout.engine=vllm"])
    with pytest.raises(UserError, match=r"vLLM is not installed; pip install 'k2rl\[vllm\]'"):
        sampler_of(recipe, policy, Weights(policy.model), ThisMachine(recipe))
