"""Was it reinforcement learning that did it? The quickstart against two controls, on tasks nobody trained on.

    python benchmarks/controls.py [--seeds 3] [--jobs 2] [--threads 1]

Arms, each with the same seeds: `rl` is the quickstart; `sft` goes on imitating nano's own demonstrations for as many
minutes as RL took; `shuffled` is the same RL with the rewards permuted inside each group. Each arm's model
answers 1,000 held-out tasks per env, and 1,000 one difficulty step beyond anything SFT saw.

Each finished (arm, seed) appends one line to the results file, and is skipped when the command is run again; one that
was interrupted starts anew. Intervals
are Student's t over seeds, of the difference to the control (or to nano) with the same seed and the same tasks.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

import k2rl
from k2rl import rng
from k2rl.eval_policy import evaluate
from k2rl.loop import train
from k2rl.losses import LossInputs, Objective, objective
from k2rl.recipe import EnvSpec, ModelConfig, Recipe, SftRecipe
from k2rl.recipe_files import load
from k2rl.sft import sft
from k2rl.types import SCHEMA_VERSION

ARMS = ("rl", "shuffled", "sft")
BEYOND = {"math": {"level": 5}, "logic": {"level": 4}, "code": {"level": 4}}
# As in nano's last minutes of SFT, on fresh demonstrations.
CONTINUED = [
    "model.path=nano",
    "sft.save_dtype=float32",
    "sft.stages=[0.5]",
    "envs.math.pool=20000",
    "envs.logic.pool=20000",
    "envs.code.pool=20000",
]
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131)
"""Student's t for 1, 2, … degrees of freedom."""
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Shuffled(Objective):
    """An objective that permutes the rewards inside each group first."""

    inner: Objective
    draw: np.random.Generator

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        return self.inner.advantages([float(r) for r in self.draw.permutation(np.asarray(rewards))])

    def coefficients(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.inner.coefficients(lengths)

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.inner.loss(x)


def run_arm(arm: str, seed: int, work: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train one arm and measure it."""
    recipe = load(Recipe, "quickstart", [f"seed={seed}", "run.eval_tasks=0", *overrides])
    folder = work / f"{arm}-{seed}"
    model = folder / "model"
    if arm == "nano":
        wall, model = 0.0, Path(recipe.model.path)
    elif arm == "sft":
        # The shortest of the RL runs: what slowed the others down would not slow this one.
        wall = min(json.loads(path.read_text())["wall_s"] for path in work.glob("rl-*/summary.json"))
        shutil.rmtree(model, ignore_errors=True)
        sft(_continued(recipe, seed, wall), model, quiet=True)
    else:
        goal = objective(recipe.objective)
        chosen = Shuffled(goal, rng.generator(seed, "shuffled rewards")) if arm == "shuffled" else goal
        shutil.rmtree(folder, ignore_errors=True)
        wall = train(recipe, folder, quiet=True, objective=chosen)["wall_s"]
    return {
        "schema_version": SCHEMA_VERSION,
        "arm": arm,
        "seed": seed,
        "wall_s": wall,
        "envs": measure(recipe, str(model), seed),
        **machine(overrides),
    }


def _continued(recipe: Recipe, seed: int, wall_s: float) -> SftRecipe:
    """nano's own SFT, from nano, for `wall_s` seconds."""
    minutes = wall_s / 60
    again = load(SftRecipe, "nano_sft", [f"seed={seed + 1000}", *CONTINUED])
    stop = replace(again.sft.stop, min_minutes=minutes, max_minutes=minutes)
    # One evaluation, at the very end: all its minutes are for learning.
    return replace(again, threads=recipe.run.threads, sft=replace(again.sft, stop=stop, eval_seconds=wall_s))


def measure(recipe: Recipe, model: str, seed: int) -> dict[str, Any]:
    """pass@1 of 1,000 held-out tasks per env and of 1,000 one step harder: sampled (T = 1) and greedy."""
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    envs = dict(recipe.envs)
    for name, args in BEYOND.items():
        spec = recipe.envs[name]
        envs[f"{name}_beyond"] = EnvSpec(id=spec.id, args={**spec.args, **args}, budget=replace(spec.budget, tokens=96))
    report = evaluate(ModelConfig(path=model), envs, n=1000, samples=1, seed=seed, quiet=True)
    return {
        name: {"sampled": r["pass@1"], **{key: r[key] for key in ("greedy", "tokens", "n", "no_verdict")}}
        for name, r in report["envs"].items()
    }


def machine(overrides: Sequence[str]) -> dict[str, Any]:
    """Where and with what this was measured."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=HERE)
    return {
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"k2rl": k2rl.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "commit": commit.stdout.strip(),
        "overrides": list(overrides),
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of the 95 % t interval (NaN for a single value)."""
    if len(values) < 2:
        return statistics.fmean(values), math.nan
    half = T_975[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """What each arm reached, and what RL gained over nano and over each control."""
    by_key = {(r["arm"], r["seed"]): r["envs"] for r in rows}
    seeds = sorted({s for a, s in by_key if a == "rl"})
    envs = list(next(iter(by_key.values())))
    reached = Table(title=f"pass@1 on held-out tasks, mean over {len(seeds)} seeds (greedy in brackets)")
    gained = Table(title="difference in sampled pass@1, points, with 95 % intervals over seeds")
    arms = [a for a in ("nano", *ARMS) if any(a == key for key, _ in by_key)]
    pairs = [("rl", "nano"), ("rl", "sft"), ("rl", "shuffled"), ("sft", "nano"), ("shuffled", "nano")]
    pairs = [p for p in pairs if p[0] in arms and p[1] in arms]
    reached.add_column("env")
    gained.add_column("env")
    for arm in arms:
        reached.add_column(arm, justify="right")
        reached.add_column("tokens", justify="right")
    for a, b in pairs:
        gained.add_column(f"{a} - {b}", justify="right")
    for env in envs:
        cells = []
        for arm in arms:
            own = [by_key[arm, s][env] for s in seeds if (arm, s) in by_key]
            if not own:
                cells += ["-", "-"]
                continue
            sampled, greedy, tokens = (statistics.fmean([o[k] for o in own]) for k in ("sampled", "greedy", "tokens"))
            cells += [f"{sampled:.3f} ({greedy:.3f})", f"{tokens:.1f}"]
        reached.add_row(env, *cells)
        differences = []
        for a, b in pairs:
            shared = [s for s in seeds if (a, s) in by_key and (b, s) in by_key]
            if not shared:
                differences.append("-")
                continue
            mean, half = interval([by_key[a, s][env]["sampled"] - by_key[b, s][env]["sampled"] for s in shared])
            differences.append(f"{100 * mean:+.1f} ± {100 * half:.1f}")
        gained.add_row(env, *differences)
    return [reached, gained]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="arms trained at the same time")
    parser.add_argument("--threads", type=int, default=None, help="torch threads per arm")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "controls.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/controls"))
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help="run one arm and print its line")
    parser.add_argument("overrides", nargs="*", help="key=value for the quickstart recipe")
    args = parser.parse_args()
    overrides = [*args.overrides, *([f"run.threads={args.threads}"] if args.threads else [])]
    if args.one:
        print(json.dumps(run_arm(args.one[0], int(args.one[1]), args.work, overrides)))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    foreign = [r for r in rows if r["overrides"] != overrides]
    if foreign:
        parser.error(f"{args.out} holds results with overrides {foreign[0]['overrides']}: choose another --out")
    done = {(r["arm"], r["seed"]) for r in rows}
    flags = ["--work", str(args.work), *(["--threads", str(args.threads)] if args.threads else [])]

    def work(job: tuple[str, int]) -> None:
        # Jobs start in order, so a seed's RL is done, or at least under way, when its SFT control starts.
        while job[0] == "sft" and not any((r["arm"], r["seed"]) == ("rl", job[1]) for r in rows):
            time.sleep(1)
        command = [sys.executable, __file__, "--one", job[0], str(job[1]), *flags, *args.overrides]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        line = ended.stdout.splitlines()[-1]
        rows.append(json.loads(line))
        with args.out.open("a") as file:
            file.write(line + "\n")
        print(f"{job[0]} seed {job[1]}: {rows[-1]['wall_s']:.0f} s", file=sys.stderr, flush=True)

    jobs = [
        (arm, seed)
        for arm in ("rl", "nano", "sft", "shuffled")
        for seed in range(args.seeds)
        if (arm, seed) not in done
    ]
    with ThreadPoolExecutor(args.jobs) as executor:
        list(executor.map(work, jobs))
    console = Console(width=160)
    for grid in tables(rows):
        console.print(grid)


if __name__ == "__main__":
    main()
