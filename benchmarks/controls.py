"""Was it reinforcement learning that did it? The quickstart's verifiable tasks against two controls, all held out.

    python benchmarks/controls.py [--seeds 3] [--jobs 2] [--threads 1]

Arms, each with the same seeds: `rl` is the quickstart; `sft` goes on imitating nano's own demonstrations for as many
minutes as RL took; `shuffled` is the same RL with the rewards permuted inside each group. Each arm's model
answers 1,000 held-out tasks per env, and 1,000 one difficulty step beyond anything SFT saw.

Each finished (arm, seed) is kept (see arms.py). Intervals are Student's t over seeds, of the difference to the control
(or to nano) with the same seed and the same tasks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from arms import VERIFIABLE, Job, Row, arguments, collect, measure, points, row
from rich.console import Console
from rich.table import Table

from k2rl import rng
from k2rl.loop import train
from k2rl.losses import LossInputs, Objective, objective
from k2rl.recipe import EnvSpec, Recipe, SftRecipe
from k2rl.recipe_files import load
from k2rl.sft import sft

ARMS = ("rl", "shuffled", "sft")
BEYOND = {"math": {"level": 5}, "logic": {"level": 4}, "code": {"level": 4}}
# As in nano's last minutes of SFT, on fresh demonstrations.
CONTINUED = [
    "model.path=nano",
    "sft.save_dtype=float32",
    "sft.stages=[0.5]",
    "sft.cooldown_share=0.15",
    "envs.math.pool=20000",
    "envs.logic.pool=20000",
    "envs.code.pool=20000",
]


@dataclass(frozen=True)
class Shuffled(Objective):
    """An objective that permutes the rewards inside each group first."""

    inner: Objective
    draw: np.random.Generator

    @property
    def drops_even(self) -> bool:
        return self.inner.drops_even

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        return self.inner.advantages([float(r) for r in self.draw.permutation(np.asarray(rewards))])

    def coefficients(self, lengths: Sequence[Sequence[int]]) -> list[list[float]]:
        return self.inner.coefficients(lengths)

    def loss(self, x: LossInputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.inner.loss(x)


def run_arm(arm: str, seed: int, args: argparse.Namespace) -> Row:
    """Train one arm and measure it."""
    recipe = load(Recipe, "quickstart", [*VERIFIABLE, f"seed={seed}", "run.eval_tasks=0", *args.overrides])
    folder = args.work / f"{arm}-{seed}"
    model = folder / "model"
    if arm == "nano":
        wall, model = 0.0, Path(recipe.model.path)
    elif arm == "sft":
        # The shortest of the RL runs: what slowed the others down would not slow this one.
        wall = min(json.loads(path.read_text())["wall_s"] for path in args.work.glob("rl-*/summary.json"))
        shutil.rmtree(model, ignore_errors=True)
        sft(_continued(recipe, seed, wall), model, quiet=True)
    else:
        goal = objective(recipe.objective)
        chosen = Shuffled(goal, rng.generator(seed, "shuffled rewards")) if arm == "shuffled" else goal
        shutil.rmtree(folder, ignore_errors=True)
        wall = train(recipe, folder, quiet=True, objective=chosen)["wall_s"]
    return row(arm, seed, wall, measure(recipe, _measured(recipe), str(model), seed, args.tasks), args.overrides)


def _measured(recipe: Recipe) -> dict[str, EnvSpec]:
    """The recipe's envs, and the same one difficulty step harder."""
    envs = dict(recipe.envs)
    for name, harder in BEYOND.items():
        spec = recipe.envs[name]
        envs[f"{name}_beyond"] = EnvSpec(
            id=spec.id, args={**spec.args, **harder}, budget=replace(spec.budget, tokens=96)
        )
    return envs


def _continued(recipe: Recipe, seed: int, wall_s: float) -> SftRecipe:
    """nano's own SFT, from nano, for `wall_s` seconds."""
    minutes = wall_s / 60
    again = load(SftRecipe, "nano_sft", [f"seed={seed + 1000}", *CONTINUED])
    stop = replace(again.sft.stop, min_minutes=minutes, max_minutes=minutes)
    # One evaluation, at the very end: all its minutes are for learning.
    return replace(again, threads=recipe.run.threads, sft=replace(again.sft, stop=stop, eval_seconds=wall_s))


def tables(rows: Sequence[Row]) -> list[Table]:
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
            differences.append(points([by_key[a, s][env]["sampled"] - by_key[b, s][env]["sampled"] for s in shared]))
        gained.add_row(env, *differences)
    return [reached, gained]


def ready(job: Job, rows: Sequence[Row]) -> bool:
    """A seed's RL is done before its SFT control starts, which takes as long."""
    return job[0] != "sft" or any((r["arm"], r["seed"]) == ("rl", job[1]) for r in rows)


def main() -> None:
    args = arguments(__doc__, "controls")
    jobs = [(arm, seed) for arm in ("rl", "nano", "sft", "shuffled") for seed in range(args.seeds)]
    rows = collect(args, __file__, run_arm, jobs, ready)
    console = Console(width=160)
    for grid in tables(rows):
        console.print(grid)


if __name__ == "__main__":
    main()
