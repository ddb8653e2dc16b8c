"""Build a run's parts from its recipe, and measure the policy before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from k2rl import budget, demonstrations, difficulty, memory, runlog
from k2rl.backends import env_pool, sampler_of, trainer_of
from k2rl.cluster.machines import Machines, machines_of
from k2rl.critic.critic import Critic
from k2rl.critic.setup import COMPARISON, Judging, check_open_ended, context_needed, critic_of
from k2rl.curriculum import Curriculum, Fitting, disjoint, fitting, pool
from k2rl.demonstrations import Stream
from k2rl.difficulty import Measured
from k2rl.env import GymTextEnv, SingleTurnEnv
from k2rl.envpool import EnvPool
from k2rl.errors import UserError
from k2rl.eval_policy import sampled_and_greedy
from k2rl.losses import Objective, objective
from k2rl.models import Policy, checkpoint_layers, load_policy, pick_device, save_policy
from k2rl.progress import console
from k2rl.protocols import Sampler, Trainer
from k2rl.recipe import EnvSpec, Recipe
from k2rl.rollout import RolloutDriver, multi_turn
from k2rl.sync import Sync
from k2rl.types import SCHEMA_VERSION, Task

_SMALL = 40
"""A model that fits so many times into the free memory is not worth an estimate."""


@dataclass
class Parts:
    """What an iteration works with."""

    recipe: Recipe
    policy: Policy
    envs: EnvPool
    objective: Objective
    machines: Machines
    trainer: Trainer
    sampler: Sampler
    sync: Sync
    driver: RolloutDriver
    curriculum: Curriculum
    ptx: Stream | None
    critic: Critic | None
    test_tasks: dict[str, list[Task]]

    def temperature(self, env: str, progress: float) -> float:
        """The sampling temperature of an env: its own schedule, else the run's."""
        own = self.recipe.envs[env].temperature
        return (own or self.recipe.temperature).at(progress)

    def save_model(self, folder: Path) -> None:
        self.trainer.bring_home(self.policy.model)
        save_policy(self.policy.model, self.policy.tokenizer, folder)

    @property
    def trained_copy(self) -> Any | None:
        """The critic's weights, where they are its own and learn."""
        learner = self.critic.learner if self.critic else None
        return None if learner is None or learner.shared else learner.model

    def save_critic(self, folder: Path) -> None:
        save_policy(self.trained_copy, self.policy.tokenizer, folder)

    def check_space(self, folder: Path) -> None:
        """What is trained, its master where it has one and two moments per checkpoint, the critic's own, one more being
        written, and the final model, and critic."""
        size = checkpoint = 0
        for parameter in self.policy.model.parameters():
            own, wide = parameter.numel() * parameter.element_size(), 4 * parameter.numel()
            size += own
            if parameter.requires_grad:
                apart = own < wide or self.recipe.trainer.backend == "deepspeed"
                checkpoint += own + 2 * wide + (wide if apart else 0)
        if self.critic is not None and (learner := self.critic.learner) is not None:
            for parameter in learner.model.parameters():
                if parameter.requires_grad:
                    own, wide = parameter.numel() * parameter.element_size(), 4 * parameter.numel()
                    checkpoint += 2 * wide + (0 if learner.shared else own + (wide if own < wide else 0))
                if not learner.shared:
                    size += parameter.numel() * parameter.element_size()
        runlog.enough_space(folder, checkpoint * (self.recipe.run.checkpoints_kept + 1) + size)

    def close(self) -> None:
        self.envs.close()
        if self.critic is not None:
            self.critic.close()
        self.sampler.close()
        self.trainer.close()
        self.machines.close()


def build(recipe: Recipe, goal: Objective | None = None) -> Parts:
    """A run's parts; `goal` replaces the recipe's objective.

    Raises:
        UserError: something the recipe asks for is not there.
    """
    with ExitStack() as undone:
        machines = machines_of(recipe)
        undone.callback(machines.close)
        envs = env_pool(recipe, machines)
        undone.callback(envs.close)
        parts = _build(recipe, envs, goal or objective(recipe.objective), machines)
        undone.pop_all()
    return parts


def _build(recipe: Recipe, envs: EnvPool, goal: Objective, machines: Machines) -> Parts:
    check_environments(recipe, envs)
    # Ranks have the model where they are; here it is kept for what is asked about it, and for being saved.
    at_ranks = recipe.trainer.backend == "deepspeed"
    policy = load_policy(replace(recipe.model, device="cpu") if at_ranks else recipe.model, recipe.seed)
    # Before anything is put around its layers, which a copy would go on sharing.
    judging = Judging.of(recipe, policy.model)
    if recipe.trainer.gradient_checkpointing:
        checkpoint_layers(policy.model)
        if judging.model is not policy.model:
            checkpoint_layers(judging.model)
    if multi_turn(envs.templates):
        policy.chat.check_turns()
    train_tasks, test_tasks = _tasks(recipe, envs, policy)
    measured = _measured(recipe, train_tasks)
    in_band = {name: _in_band(recipe.envs[name], tasks, measured) for name, tasks in train_tasks.items()}
    left_out = {n: len(train_tasks[n]) - len(own) for n, own in in_band.items() if recipe.envs[n].pass_rate is not None}
    train_tasks = in_band
    _warn_of_memory(recipe, policy, envs, train_tasks)
    with ExitStack() as undone:
        trainer = trainer_of(recipe, policy, goal, machines)
        undone.callback(trainer.close)
        sampler = sampler_of(recipe, policy, trainer, machines)
        undone.callback(sampler.close)
        parts = Parts(
            recipe,
            policy,
            envs,
            goal,
            machines,
            trainer,
            sampler,
            Sync(policy, trainer, sampler, recipe.seed),
            RolloutDriver(
                envs,
                sampler,
                policy.chat,
                seed=recipe.seed,
                group_size=recipe.rollout.group_size,
                context=policy.context,
                pause_share=recipe.rollout.pause_share,
                estimates=_estimates(recipe, train_tasks, measured),
            ),
            Curriculum(train_tasks, recipe.envs, recipe.seed, measured, left_out),
            _ptx(recipe, envs, policy, train_tasks),
            critic_of(recipe, envs, policy, judging, sampler, train_tasks),
            test_tasks,
        )
        undone.pop_all()
    return parts


def check_environments(recipe: Recipe, envs: EnvPool) -> None:
    """What a recipe must say of its environments, and can't be seen without them.

    Raises:
        UserError: it does not.
    """
    _check_reward_ranges(recipe, envs)
    check_open_ended(recipe, envs)


def _check_reward_ranges(recipe: Recipe, envs: EnvPool) -> None:
    """A plain gymnasium env needs a `reward_range`; an env that always gives a verdict has no use for one."""
    for name, env in envs.templates.items():
        given = recipe.envs[name].reward_range is not None
        if isinstance(env, GymTextEnv) and not given:
            raise UserError(f"env {name} gives no verdicts: declare envs.{name}.reward_range=[lowest,highest]")
        if isinstance(env, SingleTurnEnv) and given:
            raise UserError(f"envs.{name}.reward_range has no effect: {recipe.envs[name].id} gives verdicts")


def _tasks(recipe: Recipe, envs: EnvPool, policy: Policy) -> tuple[dict[str, list[Task]], dict[str, list[Task]]]:
    """Training pools and held-out tasks per env: disjoint, and within the model's context."""
    train_tasks, test_tasks = {}, {}
    needed = context_needed(recipe, envs, policy.chat)
    for name, env in envs.templates.items():
        with envs.watchdog.watching(f"tasks() of env {name}"):
            train = pool(name, env, "train", recipe.seed, recipe.envs[name].pool)
            test = pool(name, env, "test", 0, recipe.run.eval_tasks) if recipe.run.eval_tasks else []
        disjoint(name, train, test)
        what = COMPARISON if env.open_ended else "prompt with its budget"
        fits = fitting(train, needed, policy.context, what)
        test_fits = fitting(test, needed, policy.context, what) if test else Fitting([], 0)
        if fits.left_out or test_fits.left_out:
            console.print(
                f"env {name}: {fits.left_out} of {len(train)} training and {test_fits.left_out} of {len(test)} test "
                f"tasks left out: the {what} exceeds the model's context of {policy.context} tokens",
                markup=False,
                soft_wrap=True,
            )
        train_tasks[name], test_tasks[name] = fits.tasks, test_fits.tasks
    return train_tasks, test_tasks


def _warn_of_memory(recipe: Recipe, policy: Policy, envs: EnvPool, tasks: Mapping[str, Sequence[Task]]) -> None:
    """Say so where the run is likely to need more memory than there is. It starts all the same: this is an estimate,
    which takes seconds and is left out for a model that is small for its machine."""
    device = "cuda" if pick_device(recipe.model.device).type == "cuda" else "cpu"
    weights = sum(p.numel() * p.element_size() for p in policy.model.parameters())
    room = memory.available(device) + weights
    if weights * _SMALL < room:
        return

    def limit(task: Task) -> int:
        return budget.limit(task, recipe.envs[task.env].budget, envs.templates[task.env].budget)

    lengths = memory.longest(policy.chat, [t for own in tasks.values() for t in own], limit, policy.context)
    assert lengths is not None, "only tasks that fit are trained on"
    needed = memory.estimate(recipe, policy.model.config, lengths, device).peak
    if needed > room:
        console.print(
            f"memory: this run needs about {needed / memory.GIB:.1f} GiB and there are {room / memory.GIB:.1f} GiB; "
            "`k2rl doctor` with the same recipe says what to change",
            markup=False,
            soft_wrap=True,
        )


def _measured(recipe: Recipe, tasks: Mapping[str, Sequence[Task]]) -> dict[str, dict[str, Measured]]:
    """What is known of the training tasks before the run, where the recipe names a file."""
    files = {name: file for name in tasks if (file := recipe.envs[name].measured) is not None}
    return {name: difficulty.of_pool(file, name, tasks[name]) for name, file in files.items()}


def _estimates(
    recipe: Recipe, tasks: Mapping[str, Sequence[Task]], measured: Mapping[str, Mapping[str, Measured]]
) -> dict[str, int]:
    """The budgets of single tasks, by their id, of the environments that want them."""
    found: dict[str, int] = {}
    for name, own in tasks.items():
        config = recipe.envs[name].budget
        if not config.estimated:
            continue
        lengths = {t.id: measured[name][t.id].correct_tokens for t in own if t.id in measured[name]}
        estimates = {task: budget.estimate(n, config) for task, n in lengths.items()}
        known = {task: n for task, n in estimates.items() if n is not None}
        if not known:
            raise UserError(
                f"envs.{name}.budget: {recipe.envs[name].measured} has no correct answer to any of {len(own)} tasks to "
                f"estimate a budget from: measure with more samples, or set envs.{name}.budget.tokens alone"
            )
        left = len(own) - len(known)
        console.print(
            f"env {name}: the budgets of {len(known)} tasks estimated from correct answers, {min(known.values())} to "
            f"{max(known.values())} tokens; {left} without a correct answer keep the full one",
            markup=False,
            soft_wrap=True,
        )
        found |= known
    return found


def _in_band(spec: EnvSpec, tasks: list[Task], measured: Mapping[str, Mapping[str, Measured]]) -> list[Task]:
    """The tasks within the environment's band of pass rates."""
    if spec.pass_rate is None:
        return tasks
    name = tasks[0].env
    band = difficulty.within(tasks, measured[name], spec.pass_rate)
    if band.left_out:
        low, high = spec.pass_rate
        console.print(
            f"env {name}: {band.left_out} of {len(tasks)} training tasks left out by pass_rate=[{low:g}, {high:g}]: "
            f"{band.easier} easier, {band.harder} harder, {band.unmeasured} not measured",
            markup=False,
            soft_wrap=True,
        )
    return band.tasks


def _ptx(recipe: Recipe, envs: EnvPool, policy: Policy, tasks: dict[str, list[Task]]) -> Stream | None:
    weight = recipe.ptx.weight
    if weight.start == 0 and not weight.end:
        return None
    if recipe.ptx.data == "gold":
        with envs.watchdog.watching("gold() of the environments"):
            examples = demonstrations.from_gold(policy.chat, envs.templates, tasks)
    else:
        examples = demonstrations.from_file(policy.chat, Path(recipe.ptx.data))
    longest = max(len(e.ids) for e in examples)
    if longest > policy.context:
        raise UserError(f"a PTX text has {longest} tokens, the model takes {policy.context}: shorten or drop it")
    return Stream(examples, recipe.seed, "ptx")


def evaluation(recipe: Recipe, parts: Parts, quiet: bool, when: str) -> dict[str, dict[str, Any]]:
    """Held-out pass@1 per env, sampled at T = 1, with the greedy one beside it; empty without `run.eval_tasks`. Nothing
    passes in open-ended environments, which are left out."""
    if not recipe.run.eval_tasks:
        return {}
    results = sampled_and_greedy(
        parts.sampler,
        parts.policy,
        parts.envs,
        {n: tasks for n, tasks in parts.test_tasks.items() if not parts.envs.templates[n].open_ended},
        seed=recipe.seed,
        title=f"evaluating {when}",
        quiet=quiet,
    )
    return {name: {key: value for key, value in r.items() if key != "tasks"} for name, r in results.items()}


def summary_of(
    parts: Parts, before: dict[str, dict[str, Any]], after: dict[str, dict[str, Any]], wall: float
) -> dict[str, Any]:
    """What `summary.json` holds: the policy before and after, the environments left out with their reasons, and the
    seconds of the RL run without set-up."""
    return {
        "schema_version": SCHEMA_VERSION,
        "seed": parts.recipe.seed,
        "iterations": parts.recipe.run.iterations,
        "left_out": parts.envs.left_out,
        "eval_before": before,
        "eval_after": after,
        "wall_s": wall,
    }
