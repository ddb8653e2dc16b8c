"""How much memory a run takes, against what `k2rl doctor` says beforehand; and what it depends on.

    python benchmarks/memory.py                    # models of four sizes, plain, LoRA, checkpointing: estimate, peak
    python benchmarks/memory.py --vocab            # peak against the vocabulary, at the same batch
    python benchmarks/memory.py --rollouts         # cost per token from 64 to 1,024 rollouts
    python benchmarks/memory.py --size 1.5b --set model.dtype=bfloat16 --set model.lora.rank=16

Each figure is one iteration (sampling and two updates) of a Qwen2-type model with random weights, in a process of its
own. On a CPU the peak is of the process's resident memory, on a GPU of what torch allocated.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from k2rl import SingleTurnEnv, Task, Verdict, memory
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve
from k2rl.types import Split

HERE = Path(__file__).resolve().parent
SIZES: dict[str, dict[str, int]] = {
    "50m": {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 32_000},
    "140m": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "vocab_size": 50_000},
    "200m": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 10, "vocab_size": 64_000},
    "400m": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 64_000},
    "1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "vocab_size": 151_936},
}
VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "checkpointing": ["trainer.gradient_checkpointing=true"],
    "lora": ["model.lora.rank=16"],
}
BASE: dict[str, Any] = {
    "envs": {"fixed": {"id": f"{Path(__file__).resolve()}:FixedLength", "budget": {"tokens": 64}}},
    "run": {"eval_tasks": 0, "iterations": 1},
    "rollout": {"tasks": 4, "group_size": 4, "slots": 16},
    "trainer": {"micro_batch_tokens": 512},
}


class FixedLength(SingleTurnEnv):
    """Prompts of about 64 tokens; which responses are right is arbitrary."""

    budget = 64

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        for number in range(4096):
            yield Task(f"{split} {number:04d} " + "compute 12*3+4 " * 4, answer=str(number % 2))

    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.of(len(response) % 2 == int(task.answer or 0))


def model_config(shape: Mapping[str, int]) -> transformers.Qwen2Config:
    return transformers.Qwen2Config(
        **shape,
        num_attention_heads=shape["hidden_size"] // 64,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        eos_token_id=None,
        bos_token_id=None,
    )


def make_model(folder: Path, config: Any, dtype: torch.dtype) -> None:
    """Random weights under nano's tokenizer, written by a process that then frees them."""
    code = (
        "import sys, torch, transformers; from k2rl import assets\n"
        "config = transformers.AutoConfig.from_pretrained(sys.argv[1])\n"
        "model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, sys.argv[2]))\n"
        "model.save_pretrained(sys.argv[1])\n"
        "transformers.AutoTokenizer.from_pretrained(assets.NANO).save_pretrained(sys.argv[1])\n"
    )
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder)
    subprocess.run([sys.executable, "-c", code, str(folder), str(dtype).partition(".")[2]], check=True)


def measure(recipe: Recipe) -> dict[str, Any]:
    """One iteration here: peaks in bytes, lengths, tokens and seconds."""
    from k2rl.loop import Run
    from k2rl.setup import build

    parts = build(recipe)
    loading = _status("VmHWM")
    weights = sum(p.numel() * p.element_size() for p in parts.policy.model.parameters())
    run, on_gpu = Run(recipe, parts), parts.policy.model.device.type == "cuda"
    base = torch.cuda.memory_reserved() if on_gpu else _status("VmRSS") - weights
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    seconds = []
    for iteration in range(1, recipe.run.iterations + 1):
        started = time.perf_counter()
        done = run.iterate(iteration)
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() if on_gpu else _status("VmHWM")
    parts.close()
    rollouts = [rollout for group in done.ranked.groups for rollout in group.rollouts]
    return {
        "device": parts.policy.model.device.type,
        "peak": peak,
        "loading": loading,
        "base": base,
        "prompt": max(len(r.prompt_ids) for r in rollouts),
        "response": max(r.policy_tokens for r in rollouts),
        "tokens": sum(r.policy_tokens for r in rollouts),
        "seconds": median(seconds),
    }


def _status(field: str) -> int:
    """A figure of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measured(recipe: Recipe) -> dict[str, Any]:
    """`measure` in a fresh process."""
    from k2rl.recipe_files import to_yaml

    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(to_yaml(recipe))
        file.flush()
        done = subprocess.run(
            [sys.executable, __file__, "--child", file.name], check=True, stdout=subprocess.PIPE, text=True
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(name: str, shape: Mapping[str, int], overrides: Sequence[str]) -> dict[str, Any]:
    """Estimate and measured peak of one model and recipe."""
    with tempfile.TemporaryDirectory() as folder:
        config = model_config(shape)
        recipe = resolve(Recipe, {**BASE, "model": {"path": folder}}, overrides)
        dtype = torch.bfloat16 if recipe.model.dtype == "bfloat16" else torch.float32
        make_model(Path(folder), config, dtype)
        found = measured(recipe)
    guess = memory.estimate(recipe, config, memory.Lengths(found["prompt"], found["response"]), found["device"])
    total = guess.peak if found["device"] == "cpu" else guess.tensors
    row = {"name": name, **found, "estimate": total, "error": total / found["peak"] - 1}
    print(
        f"{name:28} estimate {total / 2**30:6.2f} GiB, measured {found['peak'] / 2**30:6.2f} GiB, "
        f"error {100 * row['error']:+.1f} %, {found['seconds']:.1f} s",
        flush=True,
    )
    return row | {"parts": guess.to_json()}


def by_size(sizes: Sequence[str], variants: Sequence[str], overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Estimate and peak of each size and variant."""
    errors = []
    for size in sizes:
        for variant in variants:
            row = compare(f"{size} {variant}", SIZES[size], [*VARIANTS[variant], *overrides])
            errors.append(abs(row["error"]))
            yield row
    print(f"ratio: {1 + max(errors):.2f} (estimate and measured peak, the worst of {len(errors)})")


def by_vocabulary(overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The peak less what the embedding itself takes, in bytes a parameter: weight, gradient, two moments, and the two
    parts of the gradient while they are added up (it is the head as well); with LoRA the weight alone."""
    for variant, own in (("plain", 24), ("lora", 4)):
        peaks = []
        for vocab in (1_000, 32_000, 150_000):
            shape = {**SIZES["50m"], "vocab_size": vocab}
            row = compare(f"vocabulary {vocab} {variant}", shape, [*VARIANTS[variant], *overrides])
            peaks.append(row["peak"] - own * vocab * shape["hidden_size"])
            print(f"{'':28} without the embedding {peaks[-1] / 2**30:.2f} GiB", flush=True)
            yield row | {"without_embedding": peaks[-1]}
        print(f"ratio: {max(peaks) / min(peaks):.2f} (peak without the embedding, largest over smallest, {variant})")


def by_rollouts(overrides: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Milliseconds per generated token of nano's whole iterations."""
    costs = []
    for rollouts in (64, 256, 1024):
        settings = [f"rollout.tasks={rollouts // 16}", "rollout.group_size=16", "rollout.slots=256"]
        row = measured(resolve(Recipe, BASE, ["run.iterations=3", *settings, *overrides]))
        costs.append(1000 * row["seconds"] / row["tokens"])
        print(f"{rollouts:5} rollouts: {costs[-1]:.3f} ms/token, peak {row['peak'] / 2**30:.2f} GiB", flush=True)
        yield {"rollouts": rollouts, **row, "ms_per_token": costs[-1]}
    print(f"ratio: {costs[-1] / costs[0]:.2f} (cost per token, 1,024 over 64 rollouts)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="may repeat; default: all but 1.5b")
    parser.add_argument("--variant", choices=VARIANTS, action="append", help="may repeat; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="recipe overrides; may repeat")
    parser.add_argument("--vocab", action="store_true")
    parser.add_argument("--rollouts", action="store_true")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        import yaml

        data = yaml.safe_load(Path(args.child).read_text())
        print(json.dumps(measure(resolve(Recipe, data))))
        return
    if args.vocab:
        found = by_vocabulary(args.set)
    elif args.rollouts:
        found = by_rollouts(args.set)
    else:
        found = by_size(args.size or list(SIZES)[:-1], args.variant or list(VARIANTS), args.set)
    about = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
    rows = []
    for row in found:
        rows.append(row)
        if args.json:  # after each: a long series may be cut short
            args.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
