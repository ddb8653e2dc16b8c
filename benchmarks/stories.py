"""Does a story model learn to tell of given words, and do its stories stay stories?

    python benchmarks/stories.py model.path=path/to/stories260k [--seeds 3] [--jobs 2] [--threads 1]

Trains the recipe `stories` once per seed. Before and after, the model tells stories for held-out tasks: sets of words
that no training task had (`sets`), and words that no training task had (`words`); sampled at T = 1 and greedy. What
the reward does not see is measured as well: how likely the stories are to the model as it was (`perplexity`, per
token, without the end), and how many of their runs of four words are told once only (`distinct`).

Each finished seed appends one line to the results file, and is skipped when the command is run again. Intervals: over
seeds by Student's t, of the difference on the same tasks; within a seed by bootstrap over tasks.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from controls import interval, machine
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
from k2rl.types import SCHEMA_VERSION, Rollout, mean

HERE = Path(__file__).parent
TASKS = 300
SHOWN = 6
"""Stories kept as samples: those of the first tasks, whatever they are like."""
RUN = 4


def run_seed(seed: int, work: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train with one seed; measure before and after."""
    recipe = load(Recipe, "stories", [f"seed={seed}", "run.eval_tasks=0", *overrides])
    folder = work / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    wall = train(recipe, folder, quiet=True)["wall_s"]
    judge = load_policy(recipe.model)
    models = {"before": judge, "after": load_policy(replace(recipe.model, path=str(folder / "model")))}
    told = {when: tell(model, recipe) for when, model in models.items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "seed": seed,
        "wall_s": wall,
        "envs": {name: compare(told, name, recipe.envs["stories"], judge) for name in told["before"]},
        **machine(overrides),
    }


def tell(policy: Policy, recipe: Recipe) -> dict[str, dict[str, list[Rollout]]]:
    """Per kind of task, a sampled and a greedy story for each of the same held-out tasks."""
    spec = recipe.envs["stories"]
    envs = EnvPool({"sets": spec, "words": replace(spec, args={**spec.args, "unseen": True})}, workers=1)
    try:
        sampler = TorchSampler(policy.model, policy.chat.pad_id, recipe.rollout.slots)
        tasks = held_out(policy, envs, recipe.seed, TASKS)
        driver = RolloutDriver(envs, sampler, policy.chat, seed=recipe.seed, group_size=1, purpose="eval")
        found: dict[str, dict[str, list[Rollout]]] = {}
        for name in tasks:
            for way, temperature in (("sampled", 1.0), ("greedy", 0.0)):
                groups = driver.collect(tasks[name], 0, lambda _, t=temperature: t)  # type: ignore[misc]
                found.setdefault(name, {})[way] = [g.rollouts[0] for g in groups]
        return found
    finally:
        envs.close()


def compare(
    told: Mapping[str, Mapping[str, Mapping[str, Sequence[Rollout]]]], name: str, spec: EnvSpec, judge: Policy
) -> dict[str, Any]:
    """What is measured of one kind of task: before, after, and the differences on the same tasks."""
    report: dict[str, Any] = {}
    for way in ("sampled", "greedy"):
        rewards = {when: [reward(r, spec) or 0.0 for r in told[when][name][way]] for when in told}
        passed = {when: [float(correct(r, spec)) for r in told[when][name][way]] for when in told}
        report[way] = {
            when: {
                "reward": mean(rewards[when]),
                "pass": mean(passed[when]),
                "pass_ci95": bootstrap(passed[when]),
                **style(told[when][name][way], judge),
            }
            for when in told
        }
        for key, values in (("reward", rewards), ("pass", passed)):
            gains = [after - before for before, after in zip(values["before"], values["after"], strict=True)]
            report[way][f"{key}_gain"] = mean(gains)
            report[way][f"{key}_gain_ci95"] = bootstrap(gains)
    report["samples"] = [
        {
            "prompt": str(before.task.prompt),
            "before": sample(before, spec),
            "after": sample(after, spec),
        }
        for before, after in zip(
            told["before"][name]["sampled"][:SHOWN], told["after"][name]["sampled"][:SHOWN], strict=True
        )
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
        for row in rows:
            found = row["envs"][name]

            def change(key: str, digits: int, found: Any = found, way: str = "sampled") -> str:
                return " -> ".join(f"{found[way][when][key]:.{digits}f}" for when in ("before", "after"))

            cells = [change("reward", 3), change("pass", 3), change("pass", 3, way="greedy"), change("budget_hit", 2)]
            cells += [change("tokens", 0), change("perplexity", 2), change("distinct", 2)]
            each.add_row(name, str(row["seed"]), *cells)
        cells = []
        for way in ("sampled", "greedy"):
            for key in ("reward", "pass"):
                centre, half = interval([r["envs"][name][way][f"{key}_gain"] for r in rows])
                cells.append(f"{centre:+.3f} ± {half:.3f}")
        gains.add_row(name, *cells)
    return [each, gains]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="seeds trained at the same time")
    parser.add_argument("--threads", type=int, default=1, help="torch threads per seed")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "stories.jsonl")
    parser.add_argument("--work", type=Path, default=Path("runs/stories"))
    parser.add_argument("--one", type=int, metavar="SEED", help="run one seed and print its line")
    parser.add_argument("overrides", nargs="*", help="key=value for the recipe; model.path is needed")
    args = parser.parse_args()
    overrides = [*args.overrides, f"run.threads={args.threads}"]
    if args.one is not None:
        print(json.dumps(run_seed(args.one, args.work, overrides)))
        return
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    foreign = [r for r in rows if r["overrides"] != overrides]
    if foreign:
        parser.error(f"{args.out} holds results with overrides {foreign[0]['overrides']}: choose another --out")

    def work(seed: int) -> None:
        flags = ["--work", str(args.work), "--threads", str(args.threads)]
        command = [sys.executable, __file__, "--one", str(seed), *flags, *args.overrides]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        line = ended.stdout.splitlines()[-1]
        rows.append(json.loads(line))
        with args.out.open("a") as file:
            file.write(line + "\n")
        print(f"seed {seed}: {rows[-1]['wall_s']:.0f} s", file=sys.stderr, flush=True)

    todo = [seed for seed in range(args.seeds) if seed not in {r["seed"] for r in rows}]
    with ThreadPoolExecutor(args.jobs) as executor:
        list(executor.map(work, todo))
    rows.sort(key=lambda r: int(r["seed"]))
    console = Console(width=160)
    for grid in tables(rows):
        console.print(grid)
    walls = [r["wall_s"] for r in rows]
    console.print(f"RL took {statistics.median(walls):.0f} s (median), {max(walls):.0f} s at most")


if __name__ == "__main__":
    main()
