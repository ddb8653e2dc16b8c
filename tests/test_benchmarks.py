"""Benchmarks that can't be run where they are tested: every line of them, on a model of no size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_torch_trainer import one_batch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, Qwen2Config

from k2rl.batch import micro_batches
from k2rl.losses.k2 import K2
from k2rl.recipe import OptimConfig
from k2rl.trainers.torch_trainer import TorchTrainer

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run_gpu(*arguments: str) -> list[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_gpu_benchmark_runs_on_a_cpu_in_small(tmp_path: Path) -> None:
    report = tmp_path / "gpu.json"
    told = run_gpu("--device", "cpu", "--tiny", "--rounds", "1", "--engine", "torch", "--json", str(report))
    assert told[0].startswith("ratio: ")
    found = json.loads(report.read_text())
    assert found["rollout_tokens_per_s"] > 0
    assert found["train_tflops_per_s"] > 0
    assert len(found["seconds"]["train"]) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_why_it_does_nothing() -> None:
    (told,) = run_gpu()
    assert told.startswith("skipped: torch sees no GPU")


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_of_the_matrices(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    shape = {**gpu.TINY, "hidden_size": 256, "intermediate_size": 512}
    model = AutoModelForCausalLM.from_config(Qwen2Config(**shape, tie_word_embeddings=tied)).eval()
    goal = K2(0.1)
    batch, trainer = one_batch(goal, with_ptx=False), TorchTrainer(model, goal, OptimConfig(), 4096)
    with FlopCounterMode(display=False) as counted:
        trainer.accumulate(batch)
    # What torch counts leaves out norms, and attention in fused kernels, which is little in texts this short.
    told = gpu.flops(micro_batches(batch, 4096, trainer.token_logprobs.packed), model)
    assert told == pytest.approx(counted.get_total_flops(), rel=0.02)
