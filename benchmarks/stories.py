"""Does a story model learn to tell of given words, and do its stories stay stories?

    python benchmarks/stories.py model.path=path/to/stories260k [--seeds 3] [--jobs 2] [--threads 1] [--tasks 400]

Trains the recipe `stories` once per seed. Before and after, the model tells stories for held-out tasks: sets of words
that no training task had (`sets`), and words that no training task had (`words`); sampled at T = 1 and greedy. What
the reward does not see is measured as well: how likely the stories are to the model as it was (`perplexity`, per
token, without the end), and how many of their runs of four words are told once only (`distinct`).

Each finished seed is kept (see arms.py). Intervals: over seeds by Student's t, of the difference on the same tasks;
within a seed by bootstrap over tasks.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from arms import Row, arguments, collect, interval, row
from rich.console import Console
from rich.table import Table

from k2rl.envpool import EnvPool
from k2rl.eval_policy import bootstrap, held_out
from k2rl.loop import train
from k2rl.models import Policy, load_policy
from k2rl.recipe import EnvSpec, Recipe
from k2rl.recipe_files import load
from k2rl.rollout import RolloutDriver
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.scoring import correct, reward
from k2rl.types import Rollout, mean

KINDS: dict[str, dict[str, Any]] = {"sets": {}, "words": {"unseen": True}}
"""Kinds of held-out tasks, with their arguments of the environment."""
SHOWN = 6
"""Stories kept as samples: those of the first tasks, whatever they are like."""
RUN = 4
Told = dict[str, list[Rollout]]
"""The stories for one kind of task: `sampled` and `greedy`, each in the order of the tasks."""


def run_arm(arm: str, seed: int, args: argparse.Namespace) -> Row:
    """Train with one seed; measure before and after."""
    recipe = load(Recipe, "stories", [f"seed={seed}", "run.eval_tasks=0", *args.overrides])
    folder = args.work / f"{arm}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    cpu = time.process_time()
    wall = train(recipe, folder, quiet=True)["wall_s"]
    cpu = time.process_time() - cpu
    judge = load_policy(recipe.model)
    models = {"before": judge, "after": load_policy(replace(recipe.model, path=str(folder / "model")))}
    told = {when: tell(model, recipe, args.tasks) for when, model in models.items()}
    envs = {name: compare({w: t[name] for w, t in told.items()}, recipe.envs["stories"], judge) for name in KINDS}
    return row(arm, seed, wall, envs, args.overrides) | {"cpu_s": cpu}


def tell(policy: Policy, recipe: Recipe, count: int) -> dict[str, Told]:
    """Per kind of task, a sampled and a greedy story for each of the same held-out tasks."""
    spec = recipe.envs["stories"]
    envs = EnvPool({name: replace(spec, args={**spec.args, **args}) for name, args in KINDS.items()}, workers=1)
    try:
        sampler = TorchSampler(policy.model, policy.chat.pad_id, recipe.rollout.slots)
        tasks = held_out(policy, envs, recipe.seed, count)
        driver = RolloutDriver(envs, sampler, policy.chat, seed=recipe.seed, group_size=1, purpose="eval")
        found: dict[str, Told] = {}
        for name in tasks:
            for way, temperature in (("sampled", 1.0), ("greedy", 0.0)):
                groups = driver.collect(tasks[name], 0, lambda _, t=temperature: t)  # type: ignore[misc]
                found.setdefault(name, {})[way] = [g.rollouts[0] for g in groups]
        return found
    finally:
        envs.close()


def compare(told: Mapping[str, Told], spec: EnvSpec, judge: Policy) -> dict[str, Any]:
    """What is measured of one kind of task: before, after, and the differences on the same tasks."""
    report: dict[str, Any] = {"n": len(told["before"]["sampled"])}
    for way in ("sampled", "greedy"):
        values = {
            when: {
                "reward": [reward(r, spec) or 0.0 for r in t[way]],
                "pass": [float(correct(r, spec)) for r in t[way]],
            }
            for when, t in told.items()
        }
        report[way] = {
            when: {key: mean(v) for key, v in values[when].items()} | style(told[when][way], judge) for when in told
        }
        for key in ("reward", "pass"):
            gains = [a - b for b, a in zip(values["before"][key], values["after"][key], strict=True)]
            report[way][f"{key}_gain"], report[way][f"{key}_gain_ci95"] = mean(gains), bootstrap(gains)
    shown = zip(*(told[when]["sampled"][:SHOWN] for when in ("before", "after")), strict=True)
    report["samples"] = [
        {"prompt": b.task.prompt, "before": sample(b, spec), "after": sample(a, spec)} for b, a in shown
    ]
    return report


def sample(rollout: Rollout, spec: EnvSpec) -> dict[str, Any]:
    verdict = rollout.verdict
    return {
        "story": rollout.text[-1],
        "reward": reward(rollout, spec),
        "end": str(rollout.end),
        "detail": verdict.detail if verdict else "",
    }


def style(rollouts: Sequence[Rollout], judge: Policy) -> dict[str, float]:
    """What the reward does not see, and the lengths."""
    runs: Counter[tuple[str, ...]] = Counter()
    for rollout in rollouts:
        words = rollout.text[-1].lower().split()
        runs.update(tuple(words[n : n + RUN]) for n in range(len(words) - RUN + 1))
    return {
        "perplexity": perplexity(rollouts, judge),
        "distinct": sum(n == 1 for n in runs.values()) / max(1, runs.total()),
        "tokens": mean([float(r.policy_tokens) for r in rollouts]),
        "budget_hit": mean([float(r.end == "budget") for r in rollouts]),
    }


@torch.no_grad()
def perplexity(rollouts: Sequence[Rollout], judge: Policy) -> float:
    """Of all tokens told, to `judge`, but for the tokens that end a story."""
    total, count = 0.0, 0
    for rollout in rollouts:
        told = [i for s in rollout.segments for i in s.ids if i not in judge.chat.stop_ids]
        if not told:
            continue
        ids_L = torch.tensor([*rollout.prompt_ids, *told])
        logprobs_L_V = judge.model(ids_L[None]).logits[0].log_softmax(-1)
        first = len(rollout.prompt_ids)
        total += float(logprobs_L_V[first - 1 : -1].gather(-1, ids_L[first:, None]).sum())
        count += len(told)
    return math.exp(-total / max(1, count))


def tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Each seed before and after; the gains over seeds."""
    columns = ("held out", "seed", "reward", "pass", "greedy pass", "cut at budget", "tokens", "perplexity", "distinct")
    each = Table(title="sampled stories for held-out tasks: before -> after")
    for column in columns:
        each.add_column(column, justify="left" if column == "held out" else "right")
    gains = Table(title=f"gains, mean over {len(rows)} seeds with 95 % intervals")
    for column in ("held out", "sampled reward", "sampled pass", "greedy reward", "greedy pass"):
        gains.add_column(column, justify="left" if column == "held out" else "right")
    for name in rows[0]["envs"]:
        for one in rows:
            found = one["envs"][name]

            def change(key: str, digits: int, found: Any = found, way: str = "sampled") -> str:
                return " -> ".join(f"{found[way][when][key]:.{digits}f}" for when in ("before", "after"))

            cells = [change("reward", 3), change("pass", 3), change("pass", 3, way="greedy"), change("budget_hit", 2)]
            cells += [change("tokens", 0), change("perplexity", 2), change("distinct", 2)]
            each.add_row(name, str(one["seed"]), *cells)
        cells = []
        for way in ("sampled", "greedy"):
            for key in ("reward", "pass"):
                centre, half = interval([r["envs"][name][way][f"{key}_gain"] for r in rows])
                cells.append(f"{centre:+.3f} ± {half:.3f}")
        gains.add_row(name, *cells)
    return [each, gains]


def main() -> None:
    args = arguments(__doc__, "stories")
    rows = collect(args, __file__, run_arm, [("rl", seed) for seed in range(args.seeds)])
    rows.sort(key=lambda r: int(r["seed"]))
    console = Console(width=160)
    for grid in tables(rows):
        console.print(grid)
    for key, what in (
        ("wall_s", "seconds"),
        ("cpu_s", "seconds of processor time, which other programs do not add to"),
    ):
        took = [r[key] for r in rows]
        console.print(f"RL took {statistics.median(took):.0f} (median; {max(took):.0f} at most) {what}")


if __name__ == "__main__":
    main()
