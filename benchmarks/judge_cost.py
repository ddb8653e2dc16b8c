"""What a judge's verdicts cost: shared beginnings computed once, against one prompt per comparison.

    python benchmarks/judge_cost.py [--rounds 15] [--json FILE]

All ordered pairs of a group's K responses, as `score_labels` gets them: prefix, first response, second response,
question. Random tokens, for what they are does not matter here. Both sides take turns in this process on the embedded
model, with all its threads: the sampler's `score_labels`, and the same prompts in batches by length, each computed
whole: by 256 rows a pass, all threads on one operation, and by small chunks on a thread each.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from turns import facts

from k2rl.models import load_policy
from k2rl.recipe import ModelConfig
from k2rl.samplers.prefill import prefill
from k2rl.samplers.torch_sampler import TorchSampler

Ids = tuple[int, ...]
LABELS = (30, 40)


@dataclass(frozen=True)
class Workload:
    name: str
    groups: int
    responses: int
    prefix: int
    response: int
    question: int


WORKLOADS = (
    Workload("nano", 1, 16, 25, 35, 3),
    Workload("long", 1, 8, 200, 150, 3),
    Workload("many_groups", 8, 8, 25, 35, 3),
    Workload("nothing_shared", 240, 1, 25, 70, 3),
)
"""The last one has one prompt a group: what looking for shared beginnings costs where there are none."""


def prompts(workload: Workload) -> list[Ids]:
    """Responses of 0.6 to 1.4 times the workload's length."""
    draws = np.random.default_rng(0)

    def tokens(count: int) -> Ids:
        return tuple(draws.integers(20, 300, count).tolist())

    found = []
    for _ in range(workload.groups):
        prefix, question = tokens(workload.prefix), tokens(workload.question)
        lengths = draws.uniform(0.6, 1.4, workload.responses) * workload.response
        responses = [tokens(int(n)) for n in lengths]
        pairs = [(a, b) for a in responses for b in responses if a is not b] or [(responses[0], ())]
        found += [prefix + a + b + question for a, b in pairs]
    return found


@torch.inference_mode()
def whole(model: Any, rows: int, threads: Executor | None, wanted: Sequence[Ids]) -> NDArray[np.float32]:
    """One prompt per comparison, batched."""
    scores = np.empty((len(wanted), len(LABELS)), dtype=np.float32)
    order = sorted(range(len(wanted)), key=lambda i: len(wanted[i]))
    chunks = [order[at : at + rows] for at in range(0, len(order), rows)]

    @torch.inference_mode()
    def run(chunk: list[int]) -> None:
        _, logits_P_V = prefill(model, [wanted[i] for i in chunk], 0, keep=False)
        scores[chunk] = logits_P_V.float().log_softmax(-1)[:, LABELS].numpy()

    list(map(run, chunks) if threads is None else threads.map(run, chunks))
    return scores


def in_turn(sides: dict[str, Callable[[list[Ids]], Any]], wanted: list[Ids], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side per round."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(rounds + 2):
        for name, side in sides.items():
            started = time.perf_counter()
            side(wanted)
            if step >= 2:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model = load_policy(ModelConfig()).model.eval()
    sampler = TorchSampler(model, 0)
    threads = ThreadPoolExecutor(torch.get_num_threads(), initializer=partial(torch.set_num_threads, 1))
    sides: dict[str, Callable[[list[Ids]], Any]] = {
        "shared": partial(sampler.score_labels, label_ids=LABELS),
        "whole_256_rows": partial(whole, model, 256, None),
    }
    reports: dict[str, Any] = {}
    for workload in WORKLOADS:
        wanted = prompts(workload)
        sides["whole_by_thread"] = partial(whole, model, max(1, 2048 // max(map(len, wanted))), threads)
        apart = float(np.abs(sides["shared"](wanted) - sides["whole_256_rows"](wanted)).max())
        seconds = in_turn(sides, wanted, args.rounds)
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        ratios = {
            name: [b / a for a, b in zip(seconds["shared"], seconds[name], strict=True)]
            for name in ("whole_256_rows", "whole_by_thread")
        }
        report: dict[str, Any] = {
            "prompts": len(wanted),
            "tokens": sum(map(len, wanted)),
            "ratio": {name: statistics.median(found) for name, found in ratios.items()},
            "ratios": ratios,
            "median_s": medians,
            "largest_difference": apart,
        }
        reports[workload.name] = report
        for name, ratio in report["ratio"].items():
            print(f"ratio: {ratio:.2f} ({workload.name}: shared beginnings over one prompt per comparison, {name})")
        print(
            f"  {len(wanted)} prompts, {report['tokens']} tokens: "
            + ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in medians.items())
            + f"; scores at most {apart:.1e} apart",
            flush=True,
        )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**facts(["torch", "transformers"]), "workloads": reports}, indent=1) + "\n")


if __name__ == "__main__":
    main()
