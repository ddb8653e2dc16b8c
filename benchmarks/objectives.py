"""Every objective on the quickstart's verifiable tasks: what it gains over nano, on tasks nobody trained on.

    python benchmarks/objectives.py [--seeds 3] [--jobs 2] [--threads 1]

All else is the quickstart's: AdamW at the same rates, two updates per iteration, gradients clipped at a norm of 1. The
objectives have their default options; nothing was tuned for this table. Each finished
(objective, seed) is kept (see arms.py). Intervals are Student's t over seeds, of the difference to nano with the
same seed and the same tasks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path

from arms import VERIFIABLE, Row, arguments, collect, measure, points, row
from rich.console import Console
from rich.table import Table

from k2rl.loop import train
from k2rl.losses import OBJECTIVES
from k2rl.recipe import Recipe
from k2rl.recipe_files import load

SHOWN = ("loss/clipped", "train/grad_norm")


def run_arm(arm: str, seed: int, args: argparse.Namespace) -> Row:
    """Train with one objective (or not at all: nano) and measure."""
    own = [] if arm == "nano" else [f"objective.name={arm}"]
    recipe = load(Recipe, "quickstart", [*VERIFIABLE, f"seed={seed}", "run.eval_tasks=0", *args.overrides, *own])
    if arm == "nano":
        return row(arm, seed, 0.0, measure(recipe, recipe.envs, recipe.model.path, seed, args.tasks), args.overrides)
    folder = args.work / f"{arm}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    wall = train(recipe, folder, quiet=True)["wall_s"]
    found = measure(recipe, recipe.envs, str(folder / "model"), seed, args.tasks)
    return row(arm, seed, wall, found, args.overrides) | {"objective": recipe.objective, "train": _train(folder)}


def _train(folder: Path) -> dict[str, float]:
    """The means over a run of what tells objectives apart."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {key: statistics.fmean([m[key] for m in lines if key in m]) for key in SHOWN if any(key in m for m in lines)}


def table(rows: Sequence[Row]) -> Table:
    """One line per objective: sampled and greedy gains over nano, tokens, and the share that was clipped."""
    by_key = {(r["arm"], r["seed"]): r for r in rows}
    arms = [name for name in OBJECTIVES if any(a == name for a, _ in by_key)]
    envs = list(next(iter(by_key.values()))["envs"])
    seeds = sorted({s for a, s in by_key if a == "nano"})
    grid = Table(title=f"gain over nano in pass@1, points (sampled, greedy), 95 % intervals over {len(seeds)} seeds")
    for name in ("objective", *(f"{env} {way}" for env in envs for way in ("sampled", "greedy")), "tokens", "clipped"):
        grid.add_column(name, justify="left" if name == "objective" else "right")
    for arm in arms:
        shared = [s for s in seeds if (arm, s) in by_key]
        cells = []
        for env in envs:
            for way in ("sampled", "greedy"):
                gains = [by_key[arm, s]["envs"][env][way] - by_key["nano", s]["envs"][env][way] for s in shared]
                cells.append(points(gains) if gains else "-")
        own = [by_key[arm, s] for s in shared]
        tokens = [statistics.fmean([r["envs"][env]["tokens"] for r in own]) for env in envs] if own else []
        clipped = [r["train"]["loss/clipped"] for r in own if "loss/clipped" in r["train"]]
        cells += [" ".join(f"{t:.0f}" for t in tokens), f"{statistics.fmean(clipped):.1%}" if clipped else "-"]
        grid.add_row(arm, *cells)
    return grid


def main() -> None:
    args = arguments(__doc__, "objectives")
    jobs = [(arm, seed) for seed in range(args.seeds) for arm in ("nano", *OBJECTIVES)]
    Console(width=180).print(table(collect(args, __file__, run_arm, jobs)))


if __name__ == "__main__":
    main()
