"""A run's folder made by hand, for tests of what is read from one."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from k2rl import assets, recipe_files
from k2rl.recipe import Recipe
from k2rl.types import End, Rollout, Segment, Task, Verdict

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> \x1b[31mred\x07 "
    "\u202eturned \udcff @@DATA@@ &amp; \r"
)


def rollout(
    task: Task, k: int, text: str = "12*3=36", right: bool = True, ids: Sequence[int] = (30, 31, 32)
) -> dict[str, Any]:
    segment = Segment("policy", tuple(ids), tuple(-0.5 * n for n in range(len(ids))))
    verdict = Verdict.of(right, "" if right else f"not the answer: {text[:40]}")
    made = Rollout(task, k, (5, 6), (segment,), End.STOP, (verdict,), (text,)).to_json()
    return {**made, "reward": float(right), "advantage": 0.5 if right else -0.5, "budget": 64}


def write_rows(folder: Path, kind: str, iteration: int, rows: Sequence[Mapping[str, Any]]) -> None:
    (folder / kind).mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / kind / f"{iteration:06d}.jsonl.gz").write_bytes(gzip.compress(text.encode(), 1))


def metrics(iteration: int) -> dict[str, float]:
    return {
        "iteration": iteration,
        "reward/math": 0.5 + 0.3 * math.sin(iteration / 9),
        "success/math": 0.6,
        "tokens/math": 20.0 + iteration % 3,
        "budget_hit/math": 0.1,
        "temperature/math": 1.0,
        "loss/policy": 1.0 / iteration,
        "train/grad_norm": 0.2,
        "errors/timeout": float(iteration == 2),
        "time/rollout": 1.0,
        "time/train": 2.0,
        "time/iteration": 3.1,
        "perf/tokens_per_s": 900.0,
    }


def run_folder(folder: Path, iterations: int = 3, groups: int = 2, members: int = 2, text: str = "12*3=36") -> Path:
    """A run without a critic, which was ended before it was finished."""
    folder.mkdir()
    recipe = recipe_files.load(
        Recipe, "quickstart", ["critic.enabled=false", "envs.writing=null", f"model.path={assets.NANO}"]
    )
    recipe_files.save(recipe, folder / "recipe.yaml")
    with (folder / "metrics.jsonl").open("w") as file:
        for iteration in range(1, iterations + 1):
            file.write(json.dumps(metrics(iteration)) + "\n")
            tasks = [Task(f"{text} of {g} in {iteration}", answer="36", env="math") for g in range(groups)]
            rows = [rollout(task, k, text, right=k % 2 == 0) for task in tasks for k in range(members)]
            write_rows(folder, "rollouts", iteration, rows)
    return folder
