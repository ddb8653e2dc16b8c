"""A run's critic, built from its recipe, and what must hold before there can be one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k2rl.chat import Chat
from k2rl.critic.critic import Critic
from k2rl.critic.judge import Judge, criteria_of
from k2rl.critic.prompt import Comparison, JudgePrompt
from k2rl.env import Env
from k2rl.envpool import EnvPool
from k2rl.errors import UserError
from k2rl.eval_policy import tokens_needed
from k2rl.models import Policy
from k2rl.progress import console
from k2rl.protocols import Sampler
from k2rl.recipe import Recipe
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.trainers.text_trainer import TextTrainer
from k2rl.types import Task

COMPARISON = "prompt with what a judge is told, two responses of the whole budget and critic.reasoning_tokens"
"""What must fit the context in open-ended environments."""


def check_open_ended(recipe: Recipe, envs: EnvPool) -> None:
    """Open-ended environments need a critic, a critic needs something to rank.

    Raises:
        UserError: they have not.
    """
    names = [name for name, env in envs.templates.items() if env.open_ended]
    if names and not recipe.critic.enabled:
        out = " ".join(f"envs.{name}=null" for name in names)
        raise UserError(
            f"env {names[0]} leaves its verdicts to a critic, and critic.enabled is false: set it to true, or leave "
            f"out what is open-ended with {out}"
        )
    for name in names:
        spec = recipe.envs[name]
        if spec.measured is not None or spec.order != "uniform":
            raise UserError(f"envs.{name}: {spec.id} is open-ended, it has no pass rates for measured or order")
        if recipe.critic.gate and type(envs.templates[name]).corrupt is Env.corrupt:
            raise UserError(
                f"env {name} has no corrupt(): how far a judge can be trusted there can't be measured, and its gate "
                "would stay shut; write one (docs/write-an-env.md), or set critic.gate=false"
            )
    if recipe.critic.enabled and not names and not envs.left_out:
        raise UserError(
            "critic.enabled=true has no effect: no environment of the recipe is open-ended; set it to false, or add "
            "one, such as envs.writing.id=writing"
        )


def context_needed(recipe: Recipe, envs: EnvPool, chat: Chat) -> Callable[[Task], int]:
    """How much context a task takes: its prompt and its budget; of open-ended ones what a judge is asked.

    What it returns raises `UserError` for an open-ended task without rubrics, or with some that are none.
    """
    needed, config = tokens_needed(chat, envs), recipe.critic
    if not any(env.open_ended for env in envs.templates.values()):
        return needed
    prompt = JudgePrompt(chat, reasoning=config.reasoning_tokens > 0)

    def asked(task: Task) -> int:
        env, own = envs.templates[task.env], needed(task)
        if not env.open_ended:
            return own
        budget = own - len(chat.prompt(task.messages))
        words = criteria_of(env, prompt, task, config.rubrics)
        if not words:
            raise UserError(
                f"env {task.env} is open-ended and says nothing of what a judge is to look for: set rubrics in its "
                "class or in its tasks, or critic.rubrics (docs/rubrics.md)"
            )
        empty = prompt.ask(Comparison(task.messages, words, "", "")).ids
        return max(own, len(empty) + 2 * budget + max(config.reasoning_tokens, 1))

    return asked


@dataclass(frozen=True)
class Judging:
    """The weights that judge: the policy's own or a copy, and a copy that stays as it is, where one is wanted."""

    model: Any
    reference: Any | None

    @classmethod
    def of(cls, recipe: Recipe, model: Any) -> Judging:
        config = recipe.critic
        if not config.enabled:
            return cls(model, None)
        own = copy.deepcopy(model) if config.weights == "copy" else model
        return cls(own, copy.deepcopy(model) if config.reference else None)


def critic_of(
    recipe: Recipe,
    envs: EnvPool,
    policy: Policy,
    judging: Judging,
    sampler: Sampler,
    tasks: Mapping[str, Sequence[Task]],
) -> Critic | None:
    """The critic of a run: the policy itself as a judge, or a copy of it with a sampler of its own. None where nothing
    is open-ended."""
    config, trainer, model = recipe.critic, recipe.trainer, judging.model
    open_ended = [env.open_ended for env in envs.templates.values()]
    if not any(open_ended):
        return None
    if all(open_ended) and config.recalibrate != "none":
        console.print(
            "critic: no environment is verifiable, so recalibration has no verified pairs: the judge learns at most "
            "from corruptions of gold responses, and the gate's guard is silent",
            markup=False,
            soft_wrap=True,
        )
    prompt = JudgePrompt(policy.chat, reasoning=config.reasoning_tokens > 0)

    def judge_of(model: Any) -> Judge:
        asked = sampler
        if model is not policy.model:
            asked = TorchSampler(model, policy.chat.pad_id, recipe.rollout.slots, shared=True)
        return Judge(prompt, asked, context=policy.context, reasoning_tokens=config.reasoning_tokens)

    judge = judge_of(model)
    reference = None if judging.reference is None else judge_of(judging.reference)
    learner = None
    if config.recalibrate == "step":
        shared = config.weights == "shared"
        limits = (trainer.micro_batch_tokens, trainer.micro_batch_workers)
        learner = TextTrainer(model, config.optim, *limits, shared=shared)
    return Critic(config, envs.templates, tasks, judge, learner, recipe.seed, reference)
