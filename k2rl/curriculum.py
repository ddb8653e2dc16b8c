"""Which tasks next: pools per environment, mixed by weight.

The whole state is one number per environment, how many of its tasks were handed out: the order of each pass over
a pool is keyed by (seed, env, pass).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from k2rl import rng
from k2rl.env import Env
from k2rl.errors import UserError, users_code
from k2rl.recipe import EnvSpec
from k2rl.types import Split, Task


def pool(name: str, env: Env, split: Split, seed: int, size: int) -> list[Task]:
    """The first `size` distinct tasks of an environment's split.

    Raises:
        UserError: the environment yields none, or something that is no task, or it raises.
    """
    found: dict[str, Task] = {}
    repeats = 0
    with users_code(f"tasks() of env {name}"):
        for task in env.tasks(split, seed):
            if not isinstance(task, Task):
                raise UserError(f"env {name}: tasks() must yield k2rl.Task, got {type(task).__name__}")
            if task.budget is not None and task.budget < 1:
                raise UserError(f"env {name}: a task's budget is {task.budget}: it must be 1 or more")
            named = replace(task, env=name)
            repeats = repeats + 1 if named.id in found else 0
            found.setdefault(named.id, named)
            if len(found) >= size or repeats > 10_000:
                break
    if not found:
        raise UserError(f"env {name} yields no {split} tasks: check its data and its arguments")
    return list(found.values())


def disjoint(name: str, train: Sequence[Task], test: Sequence[Task]) -> None:
    """Refuse an environment whose splits share a task.

    Raises:
        UserError: they do; shows one.
    """
    shared = {t.id for t in train} & {t.id for t in test}
    if shared:
        example = next(t for t in test if t.id in shared)
        raise UserError(
            f"env {name}: {len(shared)} tasks are in both the train and the test split, such as "
            f"{str(example.prompt)[:60]!r}; tasks(split, seed) must keep them apart"
        )


@dataclass(frozen=True)
class Fitting:
    """Tasks that fit the model's context, and how many did not."""

    tasks: list[Task]
    left_out: int


def fitting(tasks: Sequence[Task], tokens: Callable[[Task], int], context: int) -> Fitting:
    """Leave out tasks whose prompt and budget together exceed the model's context (in tokens).

    Raises:
        UserError: none fits.
    """
    kept = [t for t in tasks if tokens(t) <= context]
    if not kept:
        shortest = min(tokens(t) for t in tasks)
        raise UserError(
            f"env {tasks[0].env}: no task fits the model's context of {context} tokens (the shortest prompt with its "
            f"budget needs {shortest}): lower envs.{tasks[0].env}.budget.tokens"
        )
    return Fitting(kept, len(tasks) - len(kept))


class Curriculum:
    """Hands out training tasks, the environments interleaved by weight."""

    def __init__(self, pools: Mapping[str, Sequence[Task]], specs: Mapping[str, EnvSpec], seed: int) -> None:
        self.pools, self.seed = pools, seed
        self.weights = {name: specs[name].weight for name in pools}
        self.given = dict.fromkeys(pools, 0)

    def next(self, count: int) -> list[Task]:
        """The next `count` tasks. At every moment each env has had its share, to within one task."""
        return [self._draw(self._most_behind()) for _ in range(count)]

    def state(self) -> dict[str, int]:
        return dict(self.given)

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from `state()`.

        Raises:
            UserError: it is of other environments (an optional one is left out on one machine, not on another).
        """
        if state.keys() != self.pools.keys():
            raise UserError(
                f"the run was begun with the environments {', '.join(state)}, and here are {', '.join(self.pools)}: "
                "resume it on a machine that runs the same ones"
            )
        self.given = {name: int(state[name]) for name in self.pools}

    def _most_behind(self) -> str:
        return min(self.pools, key=lambda name: ((self.given[name] + 1) / self.weights[name], name))

    def _draw(self, name: str) -> Task:
        pass_number, at = divmod(self.given[name], len(self.pools[name]))
        order = rng.generator(self.seed, "curriculum", name, pass_number).permutation(len(self.pools[name]))
        self.given[name] += 1
        return self.pools[name][int(order[at])]
