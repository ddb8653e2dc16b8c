"""Pairs of which the better response is known, and what a judge learns from one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest

from k2rl import rng
from k2rl.batch import Example
from k2rl.critic.prompt import Comparison, JudgePrompt
from k2rl.critic.records import Pair
from k2rl.env import Env
from k2rl.errors import UserError, users_code
from k2rl.types import Task


def comparison(pair: Pair, better_first: bool) -> Comparison:
    """The pair as a judge sees it in one of its orders."""
    first, second = (pair.better, pair.worse) if better_first else (pair.worse, pair.better)
    return Comparison(pair.messages, pair.criteria, first, second)


def example(prompt: JudgePrompt, pair: Pair, better_first: bool, label: float = 1.0, text: float = 0.0) -> Example:
    """A comparison with its verdict, which is learned with the weight `label`; the better response's own tokens with
    the weight `text`, where it comes first and so is what the policy itself should have said."""
    asked = prompt.ask(comparison(pair, better_first))
    targets = [(len(asked.ids), len(asked.ids) + 1, label)]
    if text and better_first:
        targets.append((asked.first.start, asked.first.stop, text))
    return Example((*asked.ids, prompt.labels[not better_first]), len(asked.ids), tuple(targets), asked.first.stop)


def both_orders(prompt: JudgePrompt, pairs: Iterable[Pair], label: float = 1.0, text: float = 0.0) -> list[Example]:
    """Each pair in both orders; what comes first in several of them is computed once."""
    return [example(prompt, pair, order, label, text) for pair in pairs for order in (True, False)]


def of_gold(
    envs: Mapping[str, Env],
    pools: Mapping[str, Iterable[Task]],
    criteria: Callable[[Task], tuple[str, ...]],
    *key: str | int,
) -> Iterator[list[Pair]]:
    """For each task whose environment knows both, its gold response against each kind of corruption, and another one
    (see `Env.sample_gold`) against the same; draws keyed by `key`.

    Raises:
        UserError: `gold` or `corrupt` raises.
    """
    for name, tasks in pools.items():
        env = envs[name]
        for task in tasks:
            with users_code(f"gold() of env {name}"):
                gold = env.gold(task)
            if isinstance(gold, str) and (made := corrupted(env, task, gold, criteria(task), "gold", *key)):
                with users_code(f"sample_gold() of env {name}"):
                    other = env.sample_gold(task, rng.generator("another gold", task.id, *key))
                apart = [replace(p, better=other, apart=True) for p in made] if other not in (None, gold) else []
                yield [pair for both in zip_longest(made, apart) for pair in both if pair is not None]


def corrupted(env: Env, task: Task, response: str, criteria: tuple[str, ...], *key: str | int) -> list[Pair]:
    """The response against each kind of corruption that the environment knows for it, in an order drawn by `key`. One
    that left the response as it was makes no pair.

    Raises:
        UserError: `corrupt` raises, or returns something else than texts by name.
    """
    draw = rng.generator("corrupt", task.id, *key)
    with users_code(f"corrupt() of env {task.env}"):
        made = env.corrupt(task, response, draw)
    if not isinstance(made, Mapping) or not all(isinstance(x, str) for item in made.items() for x in item):
        raise UserError(f"corrupt() of env {task.env} must return a mapping from names to texts, got {made!r:.80}")
    kinds = sorted(kind for kind, text in made.items() if text != response)
    order = (kinds[int(i)] for i in draw.permutation(len(kinds)))
    return [Pair(task.env, task.id, kind, task.messages, criteria, response, made[kind]) for kind in order]
