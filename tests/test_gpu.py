"""The same on a GPU: nano computes there what it does on a CPU, and what crosses between them arrives.

    python -m pytest -m gpu

Without a GPU, and where vLLM or DeepSpeed is not installed, what needs them is skipped with the reason.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_torch_sampler import requests, run
from test_torch_trainer import gradients, groups, one_batch

from k2rl import assets
from k2rl.batch import batches
from k2rl.engines.shared_memory import Inbox, Outbox
from k2rl.loop import train
from k2rl.losses.k2 import K2
from k2rl.models import Policy, load_policy
from k2rl.protocols import Request
from k2rl.recipe import ModelConfig, OptimConfig, Recipe
from k2rl.recipe_files import load
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.trainers.torch_trainer import TorchTrainer

pytestmark = pytest.mark.gpu

GOAL = K2(0.1)
SMALL = ["run.iterations=2", "run.eval_tasks=0", "rollout.tasks=10", "rollout.group_size=4", "run.checkpoint_every=1"]


@pytest.fixture(scope="module")
def device() -> str:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    return "cuda"


def nano(device: str, dtype: str = "float32") -> Policy:
    return load_policy(ModelConfig(path=str(assets.NANO), dtype=dtype, device=device))


def test_log_probs_and_gradients_are_those_of_a_cpu(device: str) -> None:
    batch = one_batch(GOAL)
    here, there = nano("cpu"), nano(device)
    expected = TorchTrainer(here.model, GOAL, OptimConfig(), 64).log_probs(batch)
    for a, b in zip(expected, TorchTrainer(there.model, GOAL, OptimConfig(), 64).log_probs(batch), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    known, found = gradients(here.model, batch, 64, GOAL), gradients(there.model, batch, 64, GOAL)
    for name, gradient in known.items():
        assert (found[name].cpu() - gradient).norm() < 1e-3 * gradient.norm(), name


@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_bfloat16_learns_by_masters_in_float32(optim: str, device: str) -> None:
    """Steps far below a bfloat16's digits add up, and the loss of what is learned falls."""
    trainer = TorchTrainer(nano(device, "bfloat16").model, GOAL, OptimConfig(name=optim), 256)
    (batch,) = batches(groups(), GOAL, 1, [None], pad_id=0)
    before = {name: tensor.clone() for name, tensor in trainer.named_tensors()}
    losses = [trainer.step(batch, lr=1e-4)["loss/policy"] for _ in range(20)]
    assert losses[-1] < losses[0]
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trainer.named_tensors())


def test_greedy_samples_are_those_of_a_cpu_and_all_have_the_trainers_log_probs(device: str) -> None:
    here, there = nano("cpu"), nano(device)
    wanted = requests(6, 2, temperature=0.0) + [
        Request(f"s{r.id}", r.prompt_ids, r.keys, r.max_new_tokens, 0.8, r.stop_ids) for r in requests(6, 2)
    ]
    found = {d: run(TorchSampler(p.model, p.chat.pad_id, slots=5), wanted) for d, p in (("cpu", here), (device, there))}
    for request in wanted:
        for index in range(request.n):
            known, told = (found[d][request.id, index] for d in ("cpu", device))
            if not request.temperature:
                assert told.ids == known.ids
                np.testing.assert_allclose(told.logprobs, known.logprobs, atol=1e-3)
            tokens = torch.tensor([[*request.prompt_ids, *told.ids]], device=device)
            with torch.no_grad():
                logits = there.model(input_ids=tokens).logits[0, len(request.prompt_ids) - 1 : -1]
            table = (logits / (request.temperature or 1.0)).log_softmax(-1).cpu()
            own = table.gather(-1, torch.tensor(told.ids)[:, None])[:, 0]
            np.testing.assert_allclose(told.logprobs, own, atol=1e-3)


def test_weights_of_a_gpu_go_through_shared_memory_as_they_are(device: str) -> None:
    weights, inbox = dict(nano(device, "bfloat16").model.named_parameters()), Inbox()
    with Outbox(1 << 20) as outbox:
        for bucket in outbox.fill(list(weights.items())):
            for name, tensor in inbox.read(bucket):
                assert torch.equal(tensor, weights.pop(name).cpu()), name
        inbox.close()
    assert not weights


@pytest.mark.parametrize("more", [[], ["model.dtype=bfloat16", "critic.recalibrate=none"]])
def test_a_run_goes_on_where_it_stopped(more: list[str], device: str, tmp_path: Path) -> None:
    recipe = load(Recipe, "quickstart", [*SMALL, f"model.device={device}", *more])
    train(recipe, tmp_path / "run", quiet=True)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000002")
    train(recipe, tmp_path / "run", quiet=True, resume=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    assert all(np.isfinite(row["train/grad_norm"]) for row in rows)


def test_vllm_and_deepspeed_take_turns_on_one_gpu(device: str, tmp_path: Path) -> None:
    """The engine sleeps while the rank trains, and is proven each time it has woken up."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    colocated = ["rollout.engine=vllm", "trainer.backend=deepspeed", "trainer.zero_stage=3", "model.dtype=bfloat16"]
    recipe = load(Recipe, "quickstart", [*SMALL, f"model.device={device}", *colocated, "critic.recalibrate=none"])
    train(recipe, tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [1, 2]
    assert all("sync/gap" in row for row in rows)
