"""TRL's GRPOTrainer on a recipe's model, tasks and verifiers, at its best honest setting."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from turns import Link, Measured, spread
from workloads import Alternating, goal

from k2rl.batch import Batch
from k2rl.env import SingleTurnEnv
from k2rl.envpool import EnvCall
from k2rl.models import load_policy
from k2rl.recipe import Recipe
from k2rl.setup import Parts, build
from k2rl.types import Task

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

SETTINGS = ("8", "16", "32", "64", "whole", "continuous 16", "continuous whole")
"""Per-device batches (`whole`: all samples in one); `continuous`: sampled by transformers' continuous batching."""


class Clock:
    """Seconds since the turn came, of which generation and rewards, and the lengths of what was generated."""

    def __init__(self) -> None:
        self.started = self.started_cpu = self.sampling = 0.0
        self.lengths: list[float] = []

    def start(self) -> None:
        self.sampling, self.started, self.started_cpu = 0.0, time.perf_counter(), time.process_time()

    def stop(self) -> Measured:
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.started_cpu
        return {"s": seconds, "cpu_s": cpu, "sampling": self.sampling, **spread(self.lengths)}


def run(link: Link, name: str, recipe: Recipe, setting: str, steps: int) -> None:
    """`GRPOTrainer.train`, waiting for its turn after each optimizer step."""
    from transformers import TrainerCallback

    clock = Clock()

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            link.wait()
            clock.start()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            link.send(clock.stop())
            link.wait()
            clock.start()

    parts = build(recipe, goal(name))
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = grpo_trainer(parts, setting, steps, folder, clock)
            trainer.add_callback(Turns())
            trainer.train()
    finally:
        parts.close()


def grpo_trainer(parts: Parts, setting: str, steps: int, folder: str, clock: Clock) -> Any:
    """One update per batch of samples, as many samples per update as the recipe's. The model is loaded anew: the one in
    `parts` is prepared for k2rl's trainer."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    recipe = parts.recipe
    tasks = parts.curriculum.next(steps * recipe.rollout.tasks)
    samples = recipe.rollout.tasks * recipe.rollout.group_size
    size = setting.removeprefix("continuous ")
    batch = samples if size == "whole" else int(size)
    budgets = [spec.budget.tokens or 0 for spec in recipe.envs.values()]

    class Timed(GRPOTrainer):  # type: ignore[misc]
        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            found = super()._generate_and_score_completions(*args, **kwargs)
            clock.sampling += time.perf_counter() - started
            clock.lengths = found["completion_mask"].sum(1).tolist()
            return found

    def reward(completion_ids: list[list[int]], task: list[int], **_: Any) -> list[float]:
        return verified(parts, [tasks[t] for t in task], completion_ids)

    return Timed(
        model=load_policy(recipe.model).model,
        reward_funcs=reward,
        train_dataset=Dataset.from_list(
            [{"prompt": [dict(m) for m in t.messages], "task": i} for i, t in enumerate(tasks)]
        ),
        processing_class=parts.policy.tokenizer,
        args=GRPOConfig(
            output_dir=folder,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
            beta=0.0,
            num_iterations=1,
            loss_type="grpo",
            epsilon=0.2,
            temperature=1.0,
            num_generations=recipe.rollout.group_size,
            max_completion_length=max(budgets),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=samples // batch,
            use_transformers_continuous_batching=setting != size,
            learning_rate=recipe.optim.lr.start,
            lr_scheduler_type="constant",
            adam_beta1=recipe.optim.betas[0],
            adam_beta2=recipe.optim.betas[1],
            weight_decay=recipe.optim.weight_decay,
            max_grad_norm=recipe.optim.grad_clip,
            max_steps=steps,
            shuffle_dataset=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )


def verified(parts: Parts, tasks: Sequence[Task], completions: Sequence[Sequence[int]]) -> list[float]:
    """The scores of the recipe's verifiers, on the recipe's number of threads; 0 for a response that was cut."""
    if isinstance(parts.objective, Alternating):
        return [float(n % 2) for n in range(len(tasks))]
    chat = parts.policy.chat

    def verify(task: Task, text: str) -> float:
        env = parts.envs.spawn(task.env)
        assert isinstance(env, SingleTurnEnv)
        return env.verify(task, text).score or 0.0

    scores = [0.0] * len(tasks)
    waiting = {}
    for n, (task, ids) in enumerate(zip(tasks, completions, strict=True)):
        if ids[-1] in chat.stop_ids:
            call = EnvCall("step", task.env, task.id, n)
            work = partial(verify, task, chat.action(ids))
            waiting[n] = parts.envs.submit(n % parts.envs.workers, (call, work))[0]
    for n, future in waiting.items():
        scores[n] = future.result()
    return scores


def gradient_norm(parts: Parts, batch: Batch) -> float:
    """The norm of the gradient that GRPOTrainer's loss has on a k2rl batch, left-padded prompts and all."""
    rows = []
    for tokens, mask, length in zip(batch.tokens_B_L, batch.mask_B_L, batch.lengths_B, strict=True):
        first = int(mask.argmax())
        rows.append((tokens[:first], tokens[first : int(length)]))
    from trl.trainer.utils import pad

    def padded(column: int, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        texts = [row[column] for row in rows]
        ids = pad(texts, padding_value=parts.policy.chat.pad_id, padding_side=side)
        return ids, pad([torch.ones_like(t) for t in texts], padding_value=0, padding_side=side)

    prompts, completions = padded(0, "left"), padded(1, "right")
    with tempfile.TemporaryDirectory() as folder:
        trainer = grpo_trainer(parts, "whole", 1, folder, Clock())
    trainer.current_gradient_accumulation_steps = 1
    inputs = {
        "prompt_ids": prompts[0],
        "prompt_mask": prompts[1],
        "completion_ids": completions[0],
        "completion_mask": completions[1],
        "advantages": batch.advantages_B,
        "num_items_in_batch": completions[1].sum(),
    }
    trainer.compute_loss(trainer.model, inputs).backward()
    return float(torch.nn.utils.get_total_norm([p.grad for p in trainer.model.parameters() if p.grad is not None]))
