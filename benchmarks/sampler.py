"""The torch sampler against transformers' `generate`: tokens per second on the prompts of `vs_trl.py`'s workloads.

    python benchmarks/sampler.py [--only NAME …] [--steps N] [--json FILE] [key=value …]

Each side is a process of its own; they take steps in turn: the samples of one iteration. Both draw from the whole
distribution at T = 1, 16 samples a prompt, with two torch threads in all. `generate` gets all samples as one batch and
the largest budget, for it takes one. The sampler gives log-probs besides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from turns import Link, Side, facts, in_turn, spread
from workloads import WORKLOADS, goal, recipe

from k2rl import rng
from k2rl.models import load_policy
from k2rl.protocols import Request
from k2rl.recipe import Recipe
from k2rl.setup import Parts, build
from k2rl.types import Task


def k2rl_side(link: Link, name: str, made: Recipe) -> None:
    """The sampler alone: requests in, completions out."""
    parts = build(made, goal(name))
    chat, sampler = parts.policy.chat, parts.sampler
    for step in itertools.count():
        tasks = parts.curriculum.next(made.rollout.tasks)
        requests = [
            Request(
                f"{step}/{n}",
                chat.prompt(task.messages),
                tuple(rng.key("bench", step, n, k) for k in range(made.rollout.group_size)),
                made.envs[task.env].budget.tokens or 0,
                1.0,
                chat.stop_ids,
            )
            for n, task in enumerate(tasks)
        ]
        link.wait()
        started, started_cpu = time.perf_counter(), time.process_time()
        sampler.submit(requests)
        lengths: list[float] = []
        while len(lengths) < sum(r.n for r in requests):
            lengths += [len(c.ids) for c in sampler.poll()]
        seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
        link.send({"s": seconds, "cpu_s": cpu, **spread(lengths)})


def generate_side(link: Link, name: str, made: Recipe) -> None:
    """The same by `generate`, on a model as transformers loads it."""
    parts, model = build(made, goal(name)), load_policy(made.model).model
    for _ in itertools.count():
        tasks = parts.curriculum.next(made.rollout.tasks)
        link.wait()
        started, started_cpu = time.perf_counter(), time.process_time()
        lengths = generated(parts, model, tasks)
        seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
        link.send({"s": seconds, "cpu_s": cpu, **spread(lengths)})


def generated(parts: Parts, model: Any, tasks: Sequence[Task]) -> list[float]:
    """The lengths of one batch of samples."""
    chat, recipe = parts.policy.chat, parts.recipe
    prompts = [chat.prompt(t.messages) for t in tasks for _ in range(recipe.rollout.group_size)]
    width = max(map(len, prompts))
    ids = torch.tensor([[chat.pad_id] * (width - len(p)) + list(p) for p in prompts])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max(recipe.envs[t.env].budget.tokens or 0 for t in tasks),
        eos_token_id=sorted(chat.stop_ids),
        pad_token_id=chat.pad_id,
    )[:, width:]
    stop = torch.isin(out, torch.tensor(sorted(chat.stop_ids)))
    lengths = torch.where(stop.any(1), stop.int().argmax(1) + 1, out.shape[1])
    return [float(n) for n in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[w.name for w in WORKLOADS])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="recipe keys for both sides, such as rollout.slots=64")
    args = parser.parse_args()
    reports: dict[str, Any] = {}
    about = facts(["torch", "transformers"])
    with tempfile.TemporaryDirectory() as folder:
        for workload in WORKLOADS:
            if args.only and workload.name not in args.only:
                continue
            made = recipe(workload.name, Path(folder), args.overrides)
            sides = {side.__name__: Side(side, workload.name, made) for side in (generate_side, k2rl_side)}
            theirs, ours = in_turn(sides, args.steps).values()
            for open_side in sides.values():
                open_side.close()
            rates = [[m["tokens"] / m["s"] for m in side] for side in (theirs, ours)]
            ratios = [b / a for a, b in zip(*rates, strict=True)]
            reports[workload.name] = report = {
                "what": workload.what,
                "ratio": statistics.median(ratios),
                "ratios": ratios,
                "cpu_ratio": statistics.median(
                    (b["tokens"] / b["cpu_s"]) / (a["tokens"] / a["cpu_s"]) for a, b in zip(theirs, ours, strict=True)
                ),
                "generate_tokens_per_s": statistics.median(rates[0]),
                "k2rl_tokens_per_s": statistics.median(rates[1]),
                "median_length": statistics.median(m["median"] for m in ours),
                "longest": max(m["longest"] for m in ours),
            }
            print(f"ratio: {report['ratio']:.2f} ({workload.name}: tokens/s, the sampler over generate)")
            print(
                f"  {report['k2rl_tokens_per_s']:.0f} over {report['generate_tokens_per_s']:.0f} tokens/s; "
                f"per CPU second {report['cpu_ratio']:.2f}; lengths: median {report['median_length']:.0f}, "
                f"longest {report['longest']:.0f}",
                flush=True,
            )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**about, "workloads": reports}, indent=1) + "\n")


if __name__ == "__main__":
    main()
