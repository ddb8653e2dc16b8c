"""What k2rl itself costs: its iterations against a bare loop of the same sampler, verifier and loss calls.

    python benchmarks/bookkeeping.py [--iterations 12] [--json FILE] [key=value …]

Both sides run in this process in turn, on the quickstart's tasks with the learning rate at 0, so that they sample the
same tokens. The bare loop knows no environments, records, checkpoints or files: it submits prompts, decodes, calls the
verifier in line, and steps the trainer on a batch made beforehand.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from arms import VERIFIABLE

from k2rl import dump, rng
from k2rl.batch import Batch, batches
from k2rl.env import SingleTurnEnv
from k2rl.loop import Run
from k2rl.protocols import Request
from k2rl.recipe import Recipe
from k2rl.recipe_files import load
from k2rl.runlog import RunLog
from k2rl.scoring import score
from k2rl.setup import Parts, build
from k2rl.types import Group


def bare_iteration(parts: Parts, groups: list[Group], made: list[Batch], iteration: int) -> float:
    """The same samples, verdicts and updates by hand; returns seconds."""
    chat, sampler = parts.policy.chat, parts.sampler
    requests, tasks = [], {}
    for group in groups:
        tasks[group.task.id] = group.task
        keys = tuple(rng.key(parts.recipe.seed, "sample", iteration, group.task.id, r.k, 0) for r in group.rollouts)
        limit = parts.recipe.envs[group.task.env].budget.tokens
        assert limit is not None
        requests.append(Request(group.task.id, group.rollouts[0].prompt_ids, keys, limit, 1.0, chat.stop_ids))
    started = time.perf_counter()
    sampler.submit(requests)
    left = sum(r.n for r in requests)
    while left:
        for completion in sampler.poll():
            left -= 1
            task = tasks[completion.request_id]
            env = parts.envs.templates[task.env]
            assert isinstance(env, SingleTurnEnv)
            if completion.finish == "stop":
                env.verify(task, chat.decode(completion.ids))
    for batch in made:
        parts.trainer.step(batch, lr=0.0)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    fixed = [*VERIFIABLE, "run.eval_tasks=0", "optim.lr.start=0", "optim.lr.end=0"]
    recipe = load(Recipe, "quickstart", [*fixed, *args.overrides])
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    parts = build(recipe)
    ratios: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog.open(Path(folder) / "run", recipe, resume=False)
        run = Run(recipe, parts)
        for iteration in range(1, args.iterations + 1):
            started = time.perf_counter()
            done = run.iterate(iteration)
            groups = list(done.ranked.groups)
            log.iteration(done.metrics, dump.rows(done.ranked, done.scored, parts.driver.limit))
            seconds = time.perf_counter() - started
            scored = score(groups, recipe.envs, parts.objective, 1.0)
            made = list(batches(scored.groups, parts.objective, recipe.trainer.updates_per_iteration, [None] * 9, 0))
            bare = bare_iteration(parts, groups, made, iteration)
            if iteration > 1:
                ratios.append(seconds / bare)
                whole.append(seconds)
        log.close()
    parts.close()
    ratio = statistics.median(ratios)
    print(f"ratio: {ratio:.3f} (k2rl iteration over a bare loop of the same calls, median of {len(ratios)})")
    print(f"bookkeeping: {100 * (1 - 1 / ratio):.1f} % of an iteration of {statistics.median(whole):.2f} s")
    report: dict[str, Any] = {
        "ratio": ratio,
        "bookkeeping": 1 - 1 / ratio,
        "ratios": ratios,
        "iteration_s": statistics.median(whole),
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
        ).stdout.strip(),
    }
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
