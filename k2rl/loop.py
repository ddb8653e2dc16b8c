"""Reinforcement learning, one iteration at a time.

Left out here on purpose: in which processes its parts live, which is `backends.py`'s and `cluster/`'s to know. What the
disk holds is `runlog.py`'s and `checkpoint.py`'s; this page is the algorithm.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from k2rl import checkpoint, dump, mismatch
from k2rl.batch import TextBatch, batches, text_batch
from k2rl.budget import Moment
from k2rl.critic.critic import Ranked
from k2rl.errors import RunError
from k2rl.live import training
from k2rl.losses import Objective
from k2rl.progress import console, live
from k2rl.recipe import Recipe
from k2rl.report import page
from k2rl.runlog import RunLog, writing
from k2rl.samplers.pool import SamplerPool
from k2rl.scoring import Scored, score
from k2rl.setup import Parts, build, evaluation, summary_of
from k2rl.trackers import check_installed
from k2rl.types import Task, mean


@dataclass(frozen=True)
class Iteration:
    """What came of an iteration: its metrics, its groups with what the critic made of them, and their rewards."""

    metrics: dict[str, float]
    ranked: Ranked
    scored: Scored


class Run:
    """A run's parts, and the clock that tells where its time goes."""

    def __init__(self, recipe: Recipe, parts: Parts) -> None:
        self.recipe, self.parts = recipe, parts
        self.times: dict[str, float] = {}
        self.phase = ""
        """What the iteration under way is at, as `times` calls it."""
        self.restart: list[Task] = []
        """Tasks whose interrupted groups could be neither restored nor replayed."""
        self.alarms: list[str] = []
        """What the critic raised so far."""
        self.settled: tuple[int, str] | None = None
        """The last whole iteration and its state as JSON, while the weights are still that iteration's."""

    def iterate(self, iteration: int) -> Iteration:
        """One iteration."""
        recipe, parts = self.recipe, self.parts
        progress = (iteration - 1) / max(recipe.run.iterations, 1)
        started = time.perf_counter()
        with self.clock("rollout"):
            again, self.restart = self.restart, []
            fresh = recipe.rollout.tasks - len(parts.driver.pending) - len(again)
            tasks = again + parts.curriculum.next(max(fresh, 0), progress)
            groups = parts.driver.collect(tasks, iteration, lambda env: parts.temperature(env, progress))
        with self.clock("judge"):
            ranked = parts.critic.rank(groups, iteration) if parts.critic else Ranked(tuple(groups))
        with self.clock("score"):
            moment = Moment(iteration, progress, parts.driver.estimates)
            rate = recipe.run.max_failure_rate
            scored = score(ranked.groups, recipe.envs, parts.objective, rate, moment, ranked.weights)
            parts.curriculum.learn([g for g in ranked.groups if not parts.envs.templates[g.task.env].open_ended])
        with self.clock("train"):
            if recipe.cluster.colocated and recipe.rollout.engine != "torch":
                parts.sync.rest()
            self.settled = None
            updates = recipe.trainer.updates_per_iteration
            texts = [self.ptx_texts(progress) for _ in range(updates)]
            judged = parts.critic.joint(iteration, updates) if parts.critic else []
            lr = recipe.optim.lr.at(progress)
            sampled = batches(scored.groups, parts.objective, updates, texts, parts.policy.chat.pad_id, judged)
            mini_batches, gaps = mismatch.measured(sampled, parts.trainer, parts.sampler, recipe.trainer)
            stats = [parts.trainer.step(batch, lr=lr) for batch in mini_batches]
        with self.clock("critic"):
            learned = parts.critic.step(iteration, progress) if parts.critic else {}
        with self.clock("sync"):
            synced = parts.sync(iteration)
        metrics = {"iteration": iteration, **scored.metrics, **_averages(stats), **parts.curriculum.metrics()}
        metrics |= {**ranked.metrics, **gaps, **learned, **synced}
        metrics["errors/groups_restarted"] = float(len(again))
        metrics |= {f"errors/slow_calls/{env}": float(n) for env, n in parts.envs.watchdog.take_slow().items()}
        tokens = sum(r.policy_tokens for g in groups for r in g.rollouts)
        total = time.perf_counter() - started
        metrics |= {f"time/{k}": v for k, v in self.times.items()} | {"time/iteration": total}
        metrics["perf/tokens_per_s"] = tokens / total
        if isinstance(parts.sampler, SamplerPool):
            metrics |= parts.sampler.metrics(total)
        self.times = {}
        return Iteration(metrics, ranked, scored)

    def ptx_texts(self, progress: float) -> TextBatch | None:
        """The PTX examples of one update, or None in a run without PTX."""
        ptx, weight = self.recipe.ptx, self.recipe.ptx.weight.at(progress)
        if self.parts.ptx is None:
            return None
        return text_batch(self.parts.ptx.next(ptx.tokens), weight, self.parts.policy.chat.pad_id)

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to `time/<phase>`."""
        self.phase, started = phase, time.perf_counter()
        yield
        self.phase = ""
        self.times[phase] = self.times.get(phase, 0.0) + time.perf_counter() - started

    def state(self, extra: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint holds besides weights and moments."""
        parts = self.parts
        return {
            "curriculum": parts.curriculum.state(),
            "ptx_given": parts.ptx.given if parts.ptx else 0,
            "pending": parts.driver.state(),
            "budgets": parts.driver.estimates,
            "critic": parts.critic.state() if parts.critic else None,
            "alarms": self.alarms,
            **extra,
        }

    def save(self, log: RunLog, iteration: int, state: dict[str, Any]) -> None:
        """Write the checkpoint of an iteration."""
        learner, kept = self.parts.critic.learner if self.parts.critic else None, self.recipe.run.checkpoints_kept
        with writing(log.checkpoints):
            checkpoint.save(log.checkpoints, iteration, self.parts.trainer, state, kept, learner)

    def restore(self, state: dict[str, Any]) -> None:
        parts = self.parts
        parts.curriculum.restore(state["curriculum"])
        if parts.ptx:
            parts.ptx.given = state["ptx_given"]
        self.restart = parts.driver.restore(state["pending"])
        # Once estimated they hold for the whole run, whatever the file says by now.
        parts.driver.estimates = state["budgets"]
        if parts.critic:
            parts.critic.restore(state["critic"])
            self.alarms = list(state["alarms"])
        parts.sync(state["iteration"])


def train(
    recipe: Recipe, run_dir: Path, *, resume: bool = False, quiet: bool = False, objective: Objective | None = None
) -> dict[str, Any]:
    """Run a recipe to its end and return the summary that `summary.json` holds.

    `objective` replaces the recipe's, for experiments with one of your own.

    Raises:
        UserError: the recipe, the model, the data or the run directory is wrong.
        RunError: the run stopped for a named reason; its last checkpoint is whole.
    """
    check_installed(recipe.run.trackers)
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    with live("starting", quiet) as show:
        show(0, 1, "loading the model and the tasks")
        parts = build(recipe, objective)
    try:
        parts.check_space(run_dir)
        log = RunLog.open(run_dir, recipe, resume)
        try:
            return _train(Run(recipe, parts), log, resume, quiet)
        finally:
            log.close()
    finally:
        parts.close()


def _train(run: Run, log: RunLog, resume: bool, quiet: bool) -> dict[str, Any]:
    recipe, parts = run.recipe, run.parts
    learner = parts.critic.learner if parts.critic else None
    state = checkpoint.load(log.checkpoints, parts.trainer, learner) if resume else None
    log.truncate(state["iteration"] if state else 0)
    if state:
        run.restore(state)
        before, elapsed, first = state["eval_before"], state["wall_s"], state["iteration"] + 1
    else:
        parts.sync(0)
        before, elapsed, first = evaluation(recipe, parts, quiet, "before"), 0.0, 1
    log.track(recipe, first)
    started = time.perf_counter() - elapsed
    with training(run, log.folder, before, quiet) as show, rescued(run, log):
        for iteration in range(first, recipe.run.iterations + 1):
            done = run.iterate(iteration)
            metrics, ranked = done.metrics, done.ranked
            for alarm in ranked.alarms:
                run.alarms.append(alarm)
                console.print(alarm, style="bold red", markup=False, soft_wrap=True)
            if recipe.run.eval_every and iteration % recipe.run.eval_every == 0:
                results = evaluation(recipe, parts, True, "during")
                # An environment without a single verdict has none.
                metrics |= {f"eval/{e}/pass@1": r["pass@1"] for e, r in results.items() if r["pass@1"] is not None}
            log.iteration(metrics, dump.rows(ranked, done.scored, parts.driver.limit))
            state = run.state({"eval_before": before, "wall_s": time.perf_counter() - started})
            if iteration % recipe.run.checkpoint_every == 0 or iteration == recipe.run.iterations:
                run.save(log, iteration, state)
            else:
                run.settled = iteration, json.dumps(state)
            show(metrics, ranked)
    wall = time.perf_counter() - started
    log.replace_folder("model", parts.save_model)
    if parts.trained_copy is not None:
        log.replace_folder("critic", parts.save_critic)
    after = evaluation(recipe, parts, quiet, "after")
    summary = summary_of(parts, before, after, wall) | ({"alarms": run.alarms} if parts.critic else {})
    log.summary(summary)
    if recipe.run.report:
        page.at_the_end(log.folder, quiet)
    return summary


@contextmanager
def rescued(run: Run, log: RunLog) -> Iterator[None]:
    """A run that ends inside, before it has begun to train on its iteration, leaves a checkpoint of the last one."""
    try:
        yield
    except (RunError, KeyboardInterrupt):
        if run.settled is not None:
            iteration, state = run.settled
            # Where the trainer is what was lost, the checkpoint on the disk is the newest there is.
            with suppress(RunError):
                run.save(log, iteration, json.loads(state))
                console.print(f"saved iteration {iteration}: go on with --resume", markup=False)
        raise


def _averages(stats: list[dict[str, float]]) -> dict[str, float]:
    """The mean over an iteration's updates."""
    return {key: mean([s[key] for s in stats if key in s]) for key in (stats[0] if stats else {})}
