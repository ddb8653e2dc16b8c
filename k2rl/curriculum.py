"""Which tasks next: pools per environment, mixed by weight; `queues.py` has the order within each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from k2rl.difficulty import Measured, tally
from k2rl.env import Env
from k2rl.errors import UserError, users_code
from k2rl.queues import Queue
from k2rl.recipe import EnvSpec
from k2rl.types import Group, Split, Task


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


def fitting(
    tasks: Sequence[Task], tokens: Callable[[Task], int], context: int, what: str = "prompt with its budget"
) -> Fitting:
    """Leave out tasks that need more (`what`) than the model's context, in tokens.

    Raises:
        UserError: none fits.
    """
    kept = [t for t in tasks if tokens(t) <= context]
    if not kept:
        shortest = min(tokens(t) for t in tasks)
        raise UserError(
            f"env {tasks[0].env}: no task fits the model's context of {context} tokens (the shortest {what} needs "
            f"{shortest}): lower envs.{tasks[0].env}.budget.tokens"
        )
    return Fitting(kept, len(tasks) - len(kept))


class Curriculum:
    """Hands out training tasks, the environments interleaved by weight.

    `measured` has, per environment, what is known of its tasks before the run; `left_out`, how many a band of pass
    rates kept from the pool, for the metrics.
    """

    def __init__(
        self,
        pools: Mapping[str, Sequence[Task]],
        specs: Mapping[str, EnvSpec],
        seed: int,
        measured: Mapping[str, Mapping[str, Measured]] | None = None,
        left_out: Mapping[str, int] | None = None,
    ) -> None:
        self.pools, self.specs, self.left_out = pools, specs, left_out or {}
        known = measured or {}
        self.queues = {
            name: Queue(name, tasks, specs[name].order, seed, known.get(name, {})) for name, tasks in pools.items()
        }

    def next(self, count: int, progress: float = 0.0) -> list[Task]:
        """The next `count` tasks, at `progress` in [0, 1] of the run. At every moment each env has had its share, to
        within one task."""
        for queue in self.queues.values():
            queue.begin(progress)
        return [self.queues[self._most_behind()].draw() for _ in range(count)]

    def learn(self, groups: Sequence[Group]) -> None:
        """Move the success rates by what an iteration's groups show."""
        for group in groups:
            shown = tally(group, self.specs[group.task.env])
            if shown is not None:
                self.queues[group.task.env].learn(group.task, shown.rate)

    def metrics(self) -> dict[str, float]:
        """Per env: `expected`, the mean success rate of the tasks handed out last, as known when they were; `success`,
        that of all tasks tried or measured; `seen`, how many were handed out so far, of `pool`; `left_out` by a band of
        pass rates; `reach` (easy_to_hard), the share of the pool within reach."""
        found = {name: queue.metrics() for name, queue in self.queues.items()}
        for name, count in self.left_out.items():
            found[name]["left_out"] = float(count)
        return {f"curriculum/{name}/{key}": value for name, own in found.items() for key, value in own.items()}

    def state(self) -> dict[str, Any]:
        return {name: queue.state() for name, queue in self.queues.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`.

        Raises:
            UserError: it is of other environments (an optional one is left out on one machine, not on another), or of
                other tasks.
        """
        if state.keys() != self.pools.keys():
            raise UserError(
                f"the run was begun with the environments {', '.join(state)}, and here are {', '.join(self.pools)}: "
                "resume it on a machine that runs the same ones"
            )
        for name, queue in self.queues.items():
            queue.restore(state[name])

    def _most_behind(self) -> str:
        return min(self.queues, key=lambda name: ((self.queues[name].given + 1) / self.specs[name].weight, name))
