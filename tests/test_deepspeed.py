"""DeepSpeed's ranks against the torch trainer: the same batches, the same updates. Skipped where not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_torch_trainer import groups, one_batch

from k2rl import assets, checkpoint
from k2rl.batch import Batch, batches
from k2rl.cluster.child import ChildProcess
from k2rl.cluster.machines import started
from k2rl.cluster.worker import Job, ask, ask_all
from k2rl.errors import RunError, UserError
from k2rl.losses.k2 import K2
from k2rl.models import load_policy
from k2rl.recipe import LoraConfig, ModelConfig, OptimConfig, TrainerConfig

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: make test-cluster")

from k2rl.trainers.deepspeed_rank import RankConfig
from k2rl.trainers.deepspeed_trainer import DeepSpeedTrainer
from k2rl.trainers.torch_trainer import TorchTrainer

pytestmark = pytest.mark.cluster

GOAL = K2(0.1)
MICRO = 40
"""Tokens: the batch of `one_batch` falls into an odd number of micro-batches."""
MODEL = ModelConfig(path=str(assets.NANO))


@contextmanager
def deepspeed(
    stage: int, optim: OptimConfig, ranks: int = 2, model: ModelConfig = MODEL, hang_s: float = 300, **trainer: Any
) -> Iterator[DeepSpeedTrainer]:
    settings = TrainerConfig(micro_batch_tokens=MICRO, zero_stage=stage, **trainer)
    configs = [RankConfig(rank, ranks, model, 0, GOAL, optim, settings, threads=1) for rank in range(ranks)]
    jobs = [Job(f"trainer rank {n}", "probed_rank:Probed", config, hang_s) for n, config in enumerate(configs)]
    whole = DeepSpeedTrainer(started([partial(ChildProcess, job) for job in jobs]), stage)
    try:
        yield whole
    finally:
        whole.close()


def torch_trainer(optim: OptimConfig, model: ModelConfig = MODEL) -> TorchTrainer:
    return TorchTrainer(load_policy(model).model, GOAL, optim, MICRO)


def uneven() -> list[Batch]:
    """Updates of one group and of two, which ranks can't share evenly."""
    return list(batches(groups(), GOAL, 2, [None, None], pad_id=0))


def gradient(trainer: TorchTrainer, batch: Batch) -> dict[str, torch.Tensor]:
    trainer.optimizer.zero_grad()
    trainer.accumulate(batch)
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.named_tensors()}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_losses_gradients_and_updates_are_the_torch_trainers(stage: int, tmp_path: Path) -> None:
    optim = OptimConfig(grad_clip=0.0)
    own, batch = torch_trainer(optim), one_batch(GOAL)
    expected = gradient(own, batch)
    with deepspeed(stage, optim) as other:
        started = weights(other)
        assert started.keys() == weights(own).keys()
        assert all(torch.equal(tensor, started[name]) for name, tensor in weights(own).items())
        for a, b in zip(own.log_probs(batch), other.log_probs(batch), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
        stats = [(own.step(batch, lr=1e-3), other.step(batch, lr=1e-3))]
        for name, found in ask_all(other.ranks, "gradients")[1].items():
            gap = (found - expected[name]).abs().max() / expected[name].abs().max()
            assert gap < 1e-5, name
        for part in uneven():
            stats.append((own.step(part, lr=1e-4), other.step(part, lr=1e-4)))
        for torchs, deepspeeds in stats:
            assert torchs.keys() == deepspeeds.keys()
            for key, value in torchs.items():
                assert deepspeeds[key] == pytest.approx(value, rel=2e-3, abs=1e-5), key
        for a, b in zip(own.log_probs(batch), other.log_probs(batch), strict=True):
            np.testing.assert_allclose(a, b, atol=0.02)
        if stage == 3:
            whole = sum(t.numel() * t.element_size() for t in weights(own).values())
            assert max(ask_all(other.ranks, "whole_weight_bytes")) < 0.6 * whole, "each rank holds its share alone"


@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_of_many_micro_batches_add_up_in_float32(stage: int) -> None:
    """Of bfloat16 weights too; added up in bfloat16 these would be 0.5 % off."""
    model, optim = ModelConfig(path=str(assets.NANO), dtype="bfloat16"), OptimConfig(grad_clip=0.0)
    (batch,) = batches(groups() * 8, GOAL, 1, [None], pad_id=0)
    expected = gradient(torch_trainer(optim, model), batch)
    with deepspeed(stage, optim, model=model) as other:
        other.step(batch, lr=1e-3)
        for name, found in ask_all(other.ranks, "gradients")[1].items():
            assert (found - expected[name]).norm() < 0.003 * expected[name].norm(), name


def test_adapters_are_trained_and_published_merged() -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    model = ModelConfig(path=str(assets.NANO), lora=LoraConfig(rank=4))
    optim, batch = OptimConfig(), one_batch(GOAL)
    own = torch_trainer(optim, model)
    with deepspeed(3, optim, model=model, gradient_checkpointing=True) as other:
        for _ in range(2):
            own.step(batch, lr=1e-2)
            other.step(batch, lr=1e-2)
        expected, found = weights(own), weights(other)
        assert found.keys() == expected.keys()
        start = dict(load_policy(MODEL).model.named_parameters())
        moved = [name for name, tensor in expected.items() if not torch.equal(tensor, start[name])]
        assert moved
        for name in moved:
            far = (found[name] - expected[name]).abs().max()
            assert far < 0.05 * (expected[name] - start[name]).abs().max(), name


@pytest.mark.parametrize("stage", [2, 3])
def test_muon_moves_the_weights_as_ours_does(stage: int) -> None:
    """DeepSpeed's iteration is in bfloat16, ours in float32: directions agree, digits don't."""
    optim, batch = OptimConfig(name="muon", grad_clip=0.0, weight_decay=0.1), one_batch(GOAL)
    own = torch_trainer(optim)
    start = weights(own)
    with deepspeed(stage, optim) as other:
        for _ in range(3):
            own.step(batch, lr=2e-3)
            other.step(batch, lr=2e-3)
        expected, found = weights(own), weights(other)
    for name, tensor in expected.items():
        a, b = (tensor - start[name]).flatten(), (found[name] - start[name]).flatten()
        assert float(b.norm() / a.norm()) == pytest.approx(1.0, abs=0.02), name
        assert float(a @ b / a.norm() / b.norm()) > 0.97, name


@pytest.mark.parametrize(
    ("stage", "name", "dtype"),
    [
        (2, "adamw", "float32"),
        (3, "adamw", "bfloat16"),
        (1, "adamw", "bfloat16"),
        (2, "muon", "float32"),
        (3, "muon", "float32"),
    ],
)
def test_what_is_saved_goes_on_as_it_was(stage: int, name: str, dtype: str, tmp_path: Path) -> None:
    optim, batch = OptimConfig(name=name, grad_clip=0.0), one_batch(GOAL)
    model = ModelConfig(path=str(assets.NANO), dtype=dtype)
    with deepspeed(stage, optim, model=model) as first:
        first.step(batch, lr=1e-3)
        first.save(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == first.files
        first.step(batch, lr=1e-3)
        expected = weights(first)
        home = load_policy(model).model
        first.bring_home(home)
        assert all(torch.equal(tensor, expected[n]) for n, tensor in home.named_parameters())
        first.load(tmp_path)
        first.step(batch, lr=1e-3)
        assert all(torch.equal(tensor, expected[n]) for n, tensor in weights(first).items())


def test_a_checkpoint_of_other_shares_is_refused(tmp_path: Path) -> None:
    with deepspeed(2, OptimConfig(), ranks=1) as first:
        checkpoint.save(tmp_path, 1, first, {}, 1)
        assert checkpoint.load(tmp_path, first) is not None
        with pytest.raises(UserError, match=r"another trainer\.backend, trainer\.ranks or trainer\.zero_stage"):
            checkpoint.load(tmp_path, torch_trainer(OptimConfig()))
        first._stage = 3
        with pytest.raises(UserError, match="it has optimizer-zero2-0-of-1"):
            checkpoint.load(tmp_path, first)


def test_a_lost_rank_ends_the_run_by_name() -> None:
    named = pytest.raises(RunError, match=r"trainer rank 1 has ended \(exit code 9\)")
    with deepspeed(1, OptimConfig()) as trainer, named:
        ask(trainer.ranks[1], "die")


def test_a_rank_that_hangs_is_named_with_the_place_where_it_is() -> None:
    named = pytest.raises(RunError, match=r"trainer rank 0 has given no sign of life for 40 s(.|\n)*in hang")
    with deepspeed(1, OptimConfig(), ranks=1, hang_s=40) as trainer, named:
        ask(trainer.ranks[0], "hang")


def test_what_deepspeed_can_not_do_is_said_at_once(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, Phi3Config, Phi3ForCausalLM

    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Phi3ForCausalLM(Phi3Config(**shape, num_key_value_heads=2, vocab_size=768, pad_token_id=0))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(assets.NANO).save_pretrained(tmp_path)
    trainer = deepspeed(1, OptimConfig(name="muon", grad_clip=0.0), ranks=1, model=ModelConfig(path=str(tmp_path)))
    with pytest.raises(UserError, match="several matrices in one weight"), trainer:
        raise AssertionError("it has started")
