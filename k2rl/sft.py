"""Supervised warm start: learn the environments' gold demonstrations until a stated rule ends it.

The weights are averaged over about the last `ema` steps, and the average is what is evaluated and saved, so that no
learning-rate decay has to be timed. A stage ends when the held-out loss has fallen by less than `stop.improvement` over
the last `stop.share` of its steps: by that rule, not where reinforcement learning looks best. The next one goes on from
its average at another learning rate.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from k2rl import __version__, demonstrations, rng, scratch
from k2rl.batch import Example, TextBatch, micro_batches, text_batch
from k2rl.chat import Chat
from k2rl.critic import pairs
from k2rl.critic.judge import Judge, criteria_of
from k2rl.critic.metrics import Labelled, measure
from k2rl.critic.prompt import JudgePrompt
from k2rl.critic.records import Pair
from k2rl.curriculum import disjoint, pool
from k2rl.env import Env
from k2rl.envpool import EnvPool
from k2rl.errors import UserError
from k2rl.models import Policy, context_length, load_policy, pick_device, save_policy
from k2rl.optim.model_optimizer import ModelOptimizer
from k2rl.progress import live
from k2rl.recipe import SftRecipe, SftStop
from k2rl.recipe_files import to_dict
from k2rl.runlog import writing
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.trainers.gradients import Gradients, Terms
from k2rl.trainers.logprobs import TokenLogProbs
from k2rl.trainers.terms import text_loss
from k2rl.types import SCHEMA_VERSION, Split, Task, mean


def sft(recipe: SftRecipe, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Train on demonstrations and write a transformers folder with `sft.json`, the report returned.

    Raises:
        UserError: `out` is not empty or can't be written, or the recipe's model or environments are wrong.
        RunError: the disk is full.
    """
    _claim(out)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    envs = EnvPool(recipe.envs, workers=0)
    try:
        with live("starting", quiet) as show:
            pools: dict[Split, dict[str, list[Task]]] = {"train": {}, "test": {}}
            for done, (name, env) in enumerate(envs.templates.items()):
                show(done, len(envs.templates) + 1, f"making the tasks of {name}")
                with envs.watchdog.watching(f"tasks() of env {name}"):
                    pools["train"][name] = pool(name, env, "train", recipe.seed, recipe.envs[name].pool)
                    pools["test"][name] = pool(name, env, "test", recipe.seed, recipe.sft.held_out)
                disjoint(name, pools["train"][name], pools["test"][name])
            show(len(envs.templates), len(envs.templates) + 1, "writing the demonstrations")
            with envs.watchdog.watching("gold() of the environments"):
                policy = _policy(recipe, envs.templates, pools["train"])
                train = [
                    example
                    for name, env in envs.templates.items()
                    for example in demonstrations.from_gold(policy.chat, {name: env}, pools["train"])
                    * round(recipe.envs[name].weight)
                ]
                judged = _Judged.of(recipe, policy, envs.templates, pools)
                held_out = {
                    name: demonstrations.from_gold(policy.chat, {name: env}, pools["test"])
                    for name, env in envs.templates.items()
                }
        units = [[e] for e in train] + judged.train
        _check_lengths([e for unit in units for e in unit], policy.context)
        _check_lengths([e for examples in held_out.values() for e in examples], policy.context)
        report = _fit(recipe, policy, units, held_out, judged, quiet) | {"left_out": envs.left_out}
    finally:
        envs.close()
    with writing(out):
        save_policy(policy.model, policy.tokenizer, out, getattr(torch, recipe.sft.save_dtype))
        (out / "sft.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


@dataclass(frozen=True)
class _Judged:
    """Preference pairs as texts to learn, those of a task together, and a held-out one of each task per environment."""

    prompt: JudgePrompt
    train: list[list[Example]]
    held_out: dict[str, list[Pair]]

    @classmethod
    def of(
        cls, recipe: SftRecipe, policy: Policy, envs: Mapping[str, Env], pools: Mapping[Split, dict[str, list[Task]]]
    ) -> _Judged:
        config, prompt = recipe.sft.pairs, JudgePrompt(policy.chat)
        if not config.shares:
            return cls(prompt, [], {})

        def words(task: Task) -> tuple[str, ...]:
            return criteria_of(envs[task.env], prompt, task)

        chosen = {name: own[: round(config.shares.get(name, 0.0) * len(own))] for name, own in pools["train"].items()}
        found, held_out = dict[str, list[list[Pair]]](), dict[str, list[Pair]]()
        for own in pairs.of_gold(envs, chosen, words, recipe.seed):
            found.setdefault(own[0].env, []).append(own[: config.per_task])
        for own in pairs.of_gold(envs, pools["test"], words, recipe.seed):
            for pair in own[:2]:
                held_out.setdefault(f"{pair.env}{' apart' if pair.apart else ''}", []).append(pair)
        for name, share in config.shares.items():
            if share and name not in found:
                raise UserError(f"sft.pairs.shares.{name} has no effect: {recipe.envs[name].id} can't corrupt its gold")
        train = [pairs.both_orders(prompt, own, config.label) for of_env in found.values() for own in of_env]
        return cls(prompt, train, held_out)


class _Fit:
    """What the stages of a fit go on with: weights, moments, the stream of batches, the history."""

    def __init__(
        self,
        recipe: SftRecipe,
        policy: Policy,
        units: Sequence[Sequence[Example]],
        held_out: Mapping[str, Sequence[Example]],
        judged: _Judged,
    ) -> None:
        self.judged = judged
        self.sampler = TorchSampler(policy.model, policy.chat.pad_id, shared=True)
        self.recipe, self.config, self.model = recipe, recipe.sft, policy.model
        self.optimizer = ModelOptimizer(policy.model, recipe.optim)
        self.logprobs = TokenLogProbs(policy.model)
        self.gradients = Gradients(policy.model, recipe.sft.micro_batch_workers)
        self.stream = _batches(units, recipe.sft.batch_tokens, recipe.seed, policy.chat.pad_id)
        self.held_out = {name: text_batch(examples, 1.0, policy.chat.pad_id) for name, examples in held_out.items()}
        self.history: list[dict[str, float]] = []
        self.step, self.tokens, self.started = 0, 0, time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def stage(self, number: int, factor: float, show: Callable[[float, float, str], None]) -> dict[str, Any]:
        """Steps at `factor` times the learning rate until the rule ends them; leaves their average as the weights."""
        config, average = self.config, Average(self.model, self.config.ema)
        since = {"step": self.step, "seconds": self.seconds, "tokens": self.tokens}
        later = (len(config.stages) - number) * config.cooldown_share
        ends_at = 60 * config.stop.max_minutes * (1 - later)
        stop = replace(config.stop, max_minutes=max(0.0, ends_at - since["seconds"]) / 60)
        next_eval, history, ended = config.eval_seconds, list[dict[str, float]](), None
        while ended is None:
            self._update(self.recipe.optim.lr.start * factor)
            average.update(self.step - int(since["step"]))
            if self.seconds - since["seconds"] < min(next_eval, 60 * stop.max_minutes):
                continue
            next_eval += config.eval_seconds
            with average.applied():
                losses = self._losses()
            entry = {"stage": number, "step": self.step, "seconds": self.seconds, "tokens": self.tokens} | losses
            self.history.append(entry)
            history.append(entry | {key: entry[key] - since[key] for key in since})
            ended = why_ended(history, stop)
            told = ", ".join(f"{name} {losses[f'held_out_loss/{name}']:.4f}" for name in self.held_out)
            right = [f"{name} {losses[f'judge_accuracy/{name}']:.3f}" for name in self.judged.held_out]
            told += f"; judges right {', '.join(right)}" if right else ""
            rate = self.tokens / entry["seconds"]
            show(entry["seconds"] / 60, config.stop.max_minutes, f"held-out loss {told}; {rate:.0f} tok/s")
        average.keep()
        now = history[-1]
        return {"lr": self.recipe.optim.lr.start * factor, "ended": ended, "steps": now["step"]} | {
            key: now[key] for key in ("seconds", "tokens", "held_out_loss")
        }

    def _update(self, lr: float) -> None:
        batch = next(self.stream)
        self.gradients.add(micro_batches(batch, self.config.micro_batch_tokens, self.logprobs.packed), self._terms, {})
        self.step += 1
        self.tokens += int(batch.lengths_B.sum())
        self.optimizer.update(lr * min(1.0, self.step / self.config.warmup_steps))

    def _terms(self, part: TextBatch) -> Terms:
        return text_loss(self.logprobs, part), {}

    def _losses(self) -> dict[str, float]:
        held = {
            f"held_out_loss/{name}": held_out_loss(self.logprobs, batch, self.config.micro_batch_tokens)
            for name, batch in self.held_out.items()
        }
        return {"held_out_loss": mean([*held.values()])} | held | self._judgements()

    def _judgements(self) -> dict[str, float]:
        """How often the model judges held-out pairs right."""
        judge, found = Judge(self.judged.prompt, self.sampler), dict[str, float]()
        for name, own in self.judged.held_out.items():
            judged = [j for j in judge.judge([pairs.comparison(p, better_first=True) for p in own]) if j is not None]
            right = measure(Labelled.of(judged, [True] * len(judged)), ["accuracy"])["accuracy"]
            found[f"judge_accuracy/{name}"] = math.nan if right is None else right
        return found


def _fit(
    recipe: SftRecipe,
    policy: Policy,
    units: Sequence[Sequence[Example]],
    held_out: Mapping[str, Sequence[Example]],
    judged: _Judged,
    quiet: bool,
) -> dict[str, Any]:
    """All stages, and the report on them."""
    fit = _Fit(recipe, policy, units, held_out, judged)
    with live("SFT", quiet) as show:
        stages = [fit.stage(n, factor, show) for n, factor in enumerate(recipe.sft.stages, start=1)]
    fit.gradients.close()
    return {
        "schema_version": SCHEMA_VERSION,
        "k2rl_version": __version__,
        "ended": stages[-1]["ended"],
        "stages": stages,
        "steps": fit.step,
        "tokens": fit.tokens,
        "demonstrations": sum(len(unit) == 1 for unit in units),
        "judged": sum(len(unit) for unit in units if len(unit) > 1),
        "parameters": sum(p.numel() for p in policy.model.parameters()),
        "held_out_loss": fit.history[-1]["held_out_loss"],
        "history": fit.history,
        "recipe": to_dict(recipe),
    }


def why_ended(history: Sequence[dict[str, float]], stop: SftStop) -> str | None:
    """The reason to end a stage after these evaluations, steps and seconds counted from its start; None to go on."""
    now = history[-1]
    if now["seconds"] >= stop.max_minutes * 60:
        return f"{stop.max_minutes:.4g} minutes are over"
    then = [h for h in history if h["step"] <= (1 - stop.share) * now["step"]]
    if not then or now["seconds"] < stop.min_minutes * 60:
        return None
    gain = 1 - now["held_out_loss"] / then[-1]["held_out_loss"]
    if gain < stop.improvement:
        return f"the held-out loss fell by {100 * gain:.2f} % over the last {100 * stop.share:g} % of the steps"
    return None


@torch.no_grad()
def held_out_loss(logprobs: TokenLogProbs, batch: TextBatch, micro_tokens: int) -> float:
    """Mean negative log-prob per target token."""
    return float(sum(text_loss(logprobs, part) for part in micro_batches(batch, micro_tokens, logprobs.packed)))


class Average:
    """An exponential moving average of a model's weights over about `steps` steps, shorter at the start."""

    def __init__(self, model: Any, steps: int) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.mean = [p.detach().clone() for p in self.parameters]
        self.steps = steps

    @torch.no_grad()
    def update(self, step: int) -> None:
        weight = max(1.0 / self.steps, 10.0 / (step + 10))
        torch._foreach_lerp_(self.mean, [p.data for p in self.parameters], weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the average inside a `with` block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self) -> None:
        """Make the average the model's weights."""
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self.parameters, self.mean, strict=True):
            current = parameter.data.clone()
            parameter.data.copy_(average)
            average.copy_(current)


def _batches(units: Sequence[Sequence[Example]], tokens: int, seed: int, pad_id: int) -> Iterator[TextBatch]:
    """Endless batches of at most `tokens` tokens (but at least one unit); units stay whole, in random order, so that
    each batch is a mixture of everything."""
    number = 0
    while True:
        pack, used = list[Example](), 0
        for i in rng.generator(seed, "sft", number).permutation(len(units)).tolist():
            more = sum(len(e.ids) for e in units[i])
            if pack and used + more > tokens:
                yield text_batch(pack, 1.0, pad_id)
                pack, used = [], 0
            pack += units[i]
            used += more
        yield text_batch(pack, 1.0, pad_id)
        number += 1


def _policy(recipe: SftRecipe, envs: dict[str, Env], pools: dict[str, list[Task]]) -> Policy:
    """The model to warm up: a given one, or a new one whose tokenizer is trained on the demonstrations."""
    if recipe.model.path is not None:
        return load_policy(recipe.model, recipe.seed)
    texts = []
    for name, env in envs.items():
        for task in pools[name][:: max(1, len(pools[name]) // 5000)]:
            gold = env.gold(task)
            texts += [str(m["content"]) for m in task.messages] + ([gold] if isinstance(gold, str) else [])
    tokens = scratch.tokenizer(texts, recipe.model.scratch.vocab_size)
    model = scratch.model(recipe.model.scratch, tokens, recipe.seed).to(pick_device(recipe.model.device))
    return Policy(model, tokens, Chat(tokens), context_length(model.config))


def _check_lengths(examples: Sequence[Example], context: int) -> None:
    longest = max(len(e.ids) for e in examples)
    if longest > context:
        raise UserError(
            f"a demonstration or a judged pair has {longest} tokens, the model takes {context}: leave long tasks out"
        )


def _claim(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"output folder {out} is not empty: choose another --out")
    except OSError as error:
        raise UserError(f"output folder {out} can't be written: {error.strerror}; choose another --out") from None
