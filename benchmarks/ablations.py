"""What the critic, the gate, budgets, PTX, the temperature and tau are worth, on short runs of the quickstart.

    python benchmarks/ablations.py [--seeds 5] [--few 3] [--jobs 2] [--threads 1]

Arms, each with the same seeds and the same held-out tasks:

* the critic: `base` (the quickstart's own settings), `frozen` (a copy of the start judges and never learns), `shared`
  (the policy itself judges, and learns to with an eighth of the learning rate), `untrained` (the policy itself, which
  never learns to), `random` (every label the critic learns from is tossed), `ungated` (weight 1, whatever it is worth),
  `random_ungated`, `none` (no critic, no open-ended environment), `unheld` (the critic learns from every verifiable
  environment).
* the rest, on top of `frozen` (recalibration takes time and they say nothing of it): `no_budget` (a cut response costs
  nothing), `ptx`, `decay` (temperature from 1.3 to 1), `tau_low`, `tau_high`.

`start` is nano. Each finished (arm, seed) is appended to the results file and not run again (see arms.py). What is
measured: pass@1 on 1,000 held-out tasks per env; the oracle of writing_oracle.py on as many; the judge on pairs of the
final policy's own answers to held-out tasks, and nano (which judges in `frozen`) on the same pairs; the gate over time.
Tables are printed as Markdown, differences with 95 % t intervals over seeds.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
import writing_oracle
from arms import VERIFIABLE, Row, arguments, collect, measure, points, row

from k2rl.critic import pairs
from k2rl.critic.judge import Judge, criteria_of
from k2rl.critic.metrics import Labelled, intervals
from k2rl.critic.metrics import measure as judged
from k2rl.critic.prompt import JudgePrompt
from k2rl.critic.recalibrate import verified_pairs
from k2rl.critic.records import Pair
from k2rl.curriculum import pool as tasks_of
from k2rl.envpool import EnvPool
from k2rl.loop import train
from k2rl.models import Policy, load_policy
from k2rl.recipe import ModelConfig, Recipe
from k2rl.recipe_files import load
from k2rl.rollout import RolloutDriver
from k2rl.samplers.torch_sampler import TorchSampler

VERIFIED = ("math", "logic", "code", "following")
CRITIC: dict[str, list[str]] = {
    "base": [],
    "frozen": ["critic.recalibrate=none"],
    "random": ["critic.labels=random"],
    "none": VERIFIABLE,
    "unheld": ["critic.held_out=[]"],
    "shared": ["critic.weights=shared", "critic.optim.lr.start=4e-4", "critic.optim.lr.end=4e-5"],
    "untrained": ["critic.weights=shared", "critic.recalibrate=none"],
    "ungated": ["critic.gate=false"],
    "random_ungated": ["critic.labels=random", "critic.gate=false"],
}
FROZEN = CRITIC["frozen"]
REST = {
    "no_budget": [*FROZEN, *(f"envs.{env}.budget.penalty=0" for env in (*VERIFIED, "writing"))],
    "ptx": [*FROZEN, "ptx.weight.start=0.1", "ptx.tokens=2048"],
    "decay": [*FROZEN, "temperature.start=1.3", "temperature.end=1.0"],
    "tau_low": [*FROZEN, "objective.tau=0.03"],
    "tau_high": [*FROZEN, "objective.tau=0.3"],
}
PAIRS, PAIR_TASKS, SAMPLES = 900, 250, 8
JUDGED = ("accuracy", "order_agreement", "ece", "brier")


def run_arm(arm: str, seed: int, args: Namespace) -> Row:
    """Train one arm (or not at all: start) and measure."""
    own = (CRITIC | REST).get(arm, [])
    recipe = load(Recipe, "quickstart", [f"seed={seed}", "run.eval_tasks=0", *args.overrides, *own])
    folder, wall, told = args.work / f"{arm}-{seed}", 0.0, dict[str, Any]()
    if arm != "start":
        shutil.rmtree(folder, ignore_errors=True)
        wall = train(recipe, folder, quiet=True)["wall_s"]
        told = gate(folder)
    start = recipe.model.path
    model = start if arm == "start" else str(folder / "model")
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    specs = {name: spec for name, spec in recipe.envs.items() if name in VERIFIED}
    envs = measure(recipe, specs, model, seed, args.tasks)
    envs["writing"] = writing_oracle.evaluate(model, args.tasks, seed)
    return row(arm, seed, wall, envs, args.overrides) | {
        # Who judges in an arm of the rest is nano, as in `frozen`.
        "judge": {} if arm in REST else judges(model, folder, start, seed, args),
        "gate": told,
    }


def judges(model: str, folder: Path, start: str, seed: int, args: Namespace) -> dict[str, Any]:
    """The judgement of the same pairs of the final policy's answers to held-out tasks: by who judged at the end (the
    policy, or the critic's own weights), and by the start."""
    base = load(Recipe, "quickstart", [*args.overrides, f"seed={seed}", f"model.path={model}"])
    policy, pool = load_policy(base.model), EnvPool(base.envs, base.rollout.workers, base.run)
    try:
        found = own_pairs(policy, pool, seed)
    finally:
        pool.close()
    report: dict[str, Any] = {}
    own_weights = folder / "critic"
    for who, path in {"end": str(own_weights) if own_weights.exists() else model, "start": start}.items():
        judging = load_policy(ModelConfig(path=path))
        judge = Judge(JudgePrompt(judging.chat), TorchSampler(judging.model, judging.chat.pad_id))
        report[who] = {name: _judgement(judge, own) for name, own in found.items()}
    return report


def own_pairs(policy: Policy, pool: EnvPool, seed: int) -> dict[str, list[Pair]]:
    """Verified pairs, of each environment and of all, and `writing`'s own responses against their corruptions."""
    sampler = TorchSampler(policy.model, policy.chat.pad_id)
    context, prompt = policy.context, JudgePrompt(policy.chat)
    driver = RolloutDriver(
        pool, sampler, policy.chat, seed=seed, group_size=SAMPLES, context=context, purpose="judged pairs"
    )
    tasks = [t for name, env in pool.templates.items() for t in tasks_of(name, env, "test", 0, PAIR_TASKS)]
    groups = driver.collect(tasks, 0, lambda env: 1.0)
    words = {name: criteria_of(env, prompt) for name, env in pool.templates.items()}
    verified = verified_pairs(groups, words, PAIRS, seed)
    found = {"verified": verified} | {name: [p for p in verified if p.env == name] for name in VERIFIED}
    found |= {"degraded": [], "apart": []}
    for group in groups:
        env, told = pool.templates[group.task.env], sorted({r.text[0] for r in group.rollouts if r.text and not r.cut})
        for text, other in pairwise(told[:3] if env.open_ended else []):
            for own in pairs.corrupted(env, group.task, text, words[group.task.env], seed)[:1]:
                found["degraded"].append(own)
                found["apart"].append(replace(own, better=other, apart=True))
    for name, env in pool.templates.items():
        of_env = {name: [t for t in tasks if t.env == name]}
        known = list(pairs.of_gold({name: env}, of_env, lambda task, name=name: words[name], seed))  # type: ignore[misc]
        found[f"gold {name}"] = [pair for own in known for pair in own[:2]]
    return found


def _judgement(judge: Judge, own: Sequence[Pair]) -> dict[str, Any]:
    made = judge.judge([pairs.comparison(pair, better_first=True) for pair in own])
    known = [(p, j) for p, j in zip(own, made, strict=True) if j is not None]
    labelled = Labelled.of([j for _, j in known], [True] * len(known), clusters=[p.task for p, _ in known])
    longer = [0.5 + 0.5 * ((len(p.better) > len(p.worse)) - (len(p.better) < len(p.worse))) for p, _ in known]
    share = statistics.fmean(longer) if longer else math.nan
    found = {"pairs": len(known), "trivial": max(share, 1 - share), **judged(labelled, JUDGED)}
    return found | {"ci95": intervals(labelled, JUDGED)}


def gate(folder: Path) -> dict[str, Any]:
    """What became of the gate of writing: its weight over time, and the seconds the critic took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = [r["critic/weight/writing"] for r in rows if "critic/weight/writing" in r]
    if not weights:
        return {}
    last = weights[-(len(weights) // 3) :]
    return {
        "weights": weights,
        "opened": next((n for n, w in enumerate(weights, start=1) if w > 0), None),
        "open_share_last_third": statistics.fmean([float(w > 0) for w in last]),
        "alarms": sum(r["critic/alarms"] for r in rows),
        "judge_s": statistics.fmean([r["time/judge"] for r in rows]),
        "critic_s": statistics.fmean([r["time/critic"] for r in rows]),
        "iteration_s": statistics.fmean([r["time/iteration"] for r in rows]),
    }


POLICY: dict[str, Callable[[Row], float]] = {
    **{env: lambda r, e=env: r["envs"][e]["sampled"] for env in VERIFIED},  # type: ignore[misc]
    **{f"{env}, greedy": lambda r, e=env: r["envs"][e]["greedy"] for env in VERIFIED},  # type: ignore[misc]
    "writing": lambda r: r["envs"]["writing"]["sampled"]["score"],
    "writing, greedy": lambda r: r["envs"]["writing"]["greedy"]["score"],
    **{part: lambda r, p=part: r["envs"]["writing"]["sampled"][p] for part in ("variety", "shapes")},  # type: ignore[misc]
}
"""What is shown of a policy: pass@1, the oracle's score of its texts, and what no corruption has to do with."""
SOURCES = ("verified", "degraded", "apart")


def policies(rows: Sequence[Row], arms: Sequence[str], against: str) -> str:
    """Each arm's policy less `against`'s with the same seed, as a Markdown table."""
    by_key: Mapping[tuple[str, int], Row] = {(r["arm"], r["seed"]): r for r in rows}
    lines = [("arm", "seeds", *POLICY)]
    for arm in arms:
        shared = [s for a, s in by_key if a == arm and (against, s) in by_key]
        if arm != against and shared:
            gaps = [[of(by_key[arm, s]) - of(by_key[against, s]) for s in shared] for of in POLICY.values()]
            lines.append((arm, str(len(shared)), *(points(values) for values in gaps)))
    return markdown(lines)


def judged_at_the_end(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Each arm's judge at the end of the run less nano, which judges in `frozen`, on the same pairs: how many it has
    right, of all verified ones also how often both orders agree, and the ECE."""
    columns = {"verified": ("verified", "accuracy"), "agreement": ("verified", "order_agreement")}
    columns |= {"ECE": ("verified", "ece")} | {source: (source, "accuracy") for source in (*VERIFIED, *SOURCES[1:])}
    lines = [("arm", "seeds", *columns)]
    for arm in arms:
        own = [r["judge"] for r in rows if r["arm"] == arm]
        if own:
            gaps = [[j["end"][source][m] - j["start"][source][m] for j in own] for source, m in columns.values()]
            lines.append((arm, str(len(own)), *(points(values) for values in gaps)))
    return markdown(lines)


def gates(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """The gate of writing over a run, the values of the seeds in turn; what judges at the end is right in so many of
    the pairs of the final policy."""
    lines: list[Sequence[str]] = [
        ("arm", "opened in iteration", "closed again in", "open in the last third", "alarms", *SOURCES)
    ]
    for arm in arms:
        own = [r for r in rows if r["arm"] == arm and r["gate"]]
        if own:
            who = "start" if arm == "frozen" else "end"
            right = [statistics.fmean([r["judge"][who][source]["accuracy"] for r in own]) for source in SOURCES]
            told = [
                [str(r["gate"]["opened"] or "never") for r in own],
                [str(closed(r["gate"]["weights"]) or "never") for r in own],
                [f"{r['gate']['open_share_last_third']:.2f}" for r in own],
                [f"{r['gate']['alarms']:.0f}" for r in own],
            ]
            lines.append((arm, *(", ".join(values) for values in told), *(f"{value:.3f}" for value in right)))
    return markdown(lines)


def closed(weights: Sequence[float]) -> int | None:
    """The first iteration in which a gate that had been open was shut."""
    return next((n for n, (before, now) in enumerate(pairwise(weights), start=2) if before > 0 >= now), None)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))


def main() -> None:
    if "--few" in sys.argv:
        at = sys.argv.index("--few")
        few = int(sys.argv[at + 1])
        del sys.argv[at : at + 2]
    else:
        few = 3
    args = arguments(__doc__, "ablations")
    # Not 0, with which nano's own demonstrations were made.
    seeds = range(1, args.seeds + 1)
    jobs = [(arm, seed) for seed in seeds for arm in ("start", *list(CRITIC)[:4])]
    jobs += [(arm, seed) for seed in islice(seeds, few) for arm in (*list(CRITIC)[4:], *REST)]
    rows = collect(args, __file__, run_arm, jobs)
    arms = list(CRITIC | REST)
    learned = [arm for arm in CRITIC if arm not in ("frozen", "none")]
    for title, table in {
        "Policies: the end of a run less nano, points": policies(rows, arms, "start"),
        "Policies: less `none`, points": policies(rows, list(CRITIC), "none"),
        "Policies: less `frozen`, points": policies(rows, list(REST), "frozen"),
        "Judges: the end less nano, points": judged_at_the_end(rows, learned),
        "Gates": gates(rows, list(CRITIC)),
    }.items():
        print(f"\n## {title}\n\n{table}")


if __name__ == "__main__":
    main()
