"""Arms x seeds of a training benchmark: each trained and measured in a process of its own, one line of JSON for each.

A finished (arm, seed) is skipped when the command is run again; one that was interrupted starts anew.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

import k2rl
from k2rl.eval_policy import evaluate
from k2rl.recipe import EnvSpec, ModelConfig, Recipe
from k2rl.types import SCHEMA_VERSION

Job = tuple[str, int]
"""An arm's name, and a seed."""
Row = dict[str, Any]
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131)
"""Student's t for 1, 2, … degrees of freedom."""
HERE = Path(__file__).parent
VERIFIABLE = ["critic.enabled=false", "envs.writing=null", "rollout.tasks=24"]
"""The quickstart without its critic and what only that can rank: as many verifiable tasks an iteration as with them."""


def arguments(doc: str | None, name: str) -> argparse.Namespace:
    """The command line of a benchmark: where its results go, how much runs at once, overrides of the recipe."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="arms trained at the same time")
    parser.add_argument("--threads", type=int, default=None, help="torch threads per arm")
    parser.add_argument("--tasks", type=int, default=1000, help="held-out tasks per env")
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"{name}.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs") / name)
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help="run one arm and print its line")
    parser.add_argument("overrides", nargs="*", help="key=value for the quickstart recipe")
    args = parser.parse_args()
    if args.threads:
        args.overrides.append(f"run.threads={args.threads}")
    return args


def collect(
    args: argparse.Namespace,
    script: str,
    run_arm: Callable[[str, int, argparse.Namespace], Row],
    jobs: Sequence[Job],
    ready: Callable[[Job, Sequence[Row]], bool] = lambda job, rows: True,
) -> list[Row]:
    """The rows of all `jobs`: those of the results file, and the missing ones as they are done, each by a process that
    runs `script --one`. A job waits until it is `ready`; jobs start in their order."""
    if args.one:
        print(json.dumps(run_arm(args.one[0], int(args.one[1]), args)))
        sys.exit()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    foreign = [r for r in rows if r["overrides"] != args.overrides]
    if foreign:
        sys.exit(f"{args.out} holds results with overrides {foreign[0]['overrides']}: choose another --out")
    done = {(r["arm"], r["seed"]) for r in rows}
    flags = ["--work", str(args.work), "--tasks", str(args.tasks), *args.overrides]

    def work(job: Job) -> None:
        while not ready(job, rows):
            time.sleep(1)
        command = [sys.executable, script, "--one", job[0], str(job[1]), *flags]
        line = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]
        rows.append(json.loads(line))
        with args.out.open("a") as file:
            file.write(line + "\n")
        print(f"{job[0]} seed {job[1]}: {rows[-1]['wall_s']:.0f} s", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(args.jobs) as executor:
        list(executor.map(work, [job for job in jobs if job not in done]))
    return rows


def row(arm: str, seed: int, wall_s: float, envs: Mapping[str, Any], overrides: Sequence[str]) -> Row:
    """What a results file keeps of an arm: what it reached, where and with what."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return {
        "schema_version": SCHEMA_VERSION,
        "arm": arm,
        "seed": seed,
        "wall_s": wall_s,
        "envs": envs,
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"k2rl": k2rl.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "commit": commit.stdout.strip(),
        "overrides": list(overrides),
    }


def measure(recipe: Recipe, envs: Mapping[str, EnvSpec], model: str, seed: int, tasks: int) -> dict[str, Any]:
    """pass@1 of held-out tasks of each env: sampled (T = 1) and greedy."""
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    report = evaluate(ModelConfig(path=model), dict(envs), n=tasks, samples=1, seed=seed, quiet=True)
    return {
        name: {"sampled": r["pass@1"], **{key: r[key] for key in ("greedy", "tokens", "n", "no_verdict")}}
        for name, r in report["envs"].items()
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t interval (NaN for a single value)."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    half = T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def points(values: Sequence[float]) -> str:
    """Differences of shares over seeds in percentage points, with their interval."""
    mean, half = interval(values)
    return f"{100 * mean:+.1f} ± {100 * half:.1f}"
