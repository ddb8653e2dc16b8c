"""One environment's training tasks in an order.

* `uniform`: each pass over the pool is shuffled, keyed by (seed, env, pass).
* `prioritised` (Kimi K1.5, arXiv 2501.12599): drawn in proportion to 1 - success rate. Of a task never tried, the mean
  of the others' rates is assumed; the weight never falls below 0.02, or a task once solved by all would not come back.
* `easy_to_hard`: from the easiest tasks, a share that grows from a fifth to the whole pool by the middle of the run
  (competence-based, Platanios et al., arXiv 1903.09848); of these the ones handed out least, so that what has just
  come within reach comes first.

A task's success rate starts where it was measured and moves half-way to what each of its groups shows. The state is
what was handed out and these rates; every draw is keyed by how many came before. (0.02, a fifth, the middle and
half-way are choices of this project.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from k2rl import rng
from k2rl.difficulty import Measured, level_of
from k2rl.errors import UserError
from k2rl.types import Task, content_hash, mean

_STEP = 0.5
_LEAST_WEIGHT = 0.02
_UNKNOWN = 0.5
_REACH_AT_START, _WHOLE_AT = 0.2, 0.5


class Queue:
    """The pool of one environment in its order. Arrays are over its N tasks.

    Raises:
        UserError: `easy_to_hard` without pass rates and levels.
    """

    def __init__(
        self, name: str, tasks: Sequence[Task], order: str, seed: int, measured: Mapping[str, Measured]
    ) -> None:
        self.name, self.tasks, self.order, self.seed = name, tasks, order, seed
        self.given = 0
        self.times_N = np.zeros(len(tasks), dtype=np.int64)
        rates = [measured[t.id].rate if t.id in measured else np.nan for t in tasks]
        self.success_N: NDArray[np.float64] = np.asarray(rates, dtype=np.float64)
        """The success rate of each task; NaN where nothing is known."""
        self.place = {t.id: at for at, t in enumerate(tasks)}
        self.digest = content_hash([t.id for t in tasks], [None if np.isnan(rate) else rate for rate in rates])
        self.easiest_first_N = self._by_ease() if order == "easy_to_hard" else np.arange(len(tasks))
        self._draw = {"uniform": self._uniform, "prioritised": self._prioritised, "easy_to_hard": self._within_reach}
        self.begin(0.0)

    def begin(self, progress: float) -> None:
        """Tasks are handed out anew from here, at `progress` of the run."""
        self.latest: list[int] = []
        self.expected: list[float] = []
        self.reach = min(1.0, _REACH_AT_START + (1 - _REACH_AT_START) * progress / _WHOLE_AT)

    def draw(self) -> Task:
        """The next task."""
        at = self._draw[self.order]()
        self.latest.append(at)
        if np.isfinite(self.success_N[at]):
            self.expected.append(float(self.success_N[at]))
        self.given += 1
        self.times_N[at] += 1
        return self.tasks[at]

    def learn(self, task: Task, rate: float) -> None:
        """Move a task's success rate half-way to `rate`, or set it if this is its first."""
        at = self.place[task.id]
        old = self.success_N[at]
        self.success_N[at] = rate if np.isnan(old) else old + _STEP * (rate - old)

    def metrics(self) -> dict[str, float]:
        """See `Curriculum.metrics`."""
        known = self.success_N[np.isfinite(self.success_N)]
        found = {"seen": float(np.count_nonzero(self.times_N)), "pool": float(len(self.tasks))}
        if self.order == "easy_to_hard":
            found["reach"] = self.reach
        found |= {"expected": mean(self.expected)} if self.expected else {}
        return found | ({"success": float(known.mean())} if len(known) else {})

    def state(self) -> dict[str, Any]:
        seen = np.flatnonzero(self.times_N)
        rates = [None if np.isnan(rate) else float(rate) for rate in self.success_N[seen]]
        tasks = {
            self.tasks[at].id: [int(self.times_N[at]), rate] for at, rate in zip(seen.tolist(), rates, strict=True)
        }
        return {"given": self.given, "pool": self.digest, "seen": tasks}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. Raises `UserError` where it is of other tasks."""
        if state["pool"] != self.digest:
            raise UserError(
                f"env {self.name}: its training tasks or their measured pass rates are not those the run was begun "
                "with: resume with the same data and files, or start a new run directory"
            )
        self.given = int(state["given"])
        for task, (times, rate) in state["seen"].items():
            self.times_N[self.place[task]] = times
            self.success_N[self.place[task]] = np.nan if rate is None else rate

    def _uniform(self) -> int:
        pass_number, at = divmod(self.given, len(self.tasks))
        return int(rng.generator(self.seed, "curriculum", self.name, pass_number).permutation(len(self.tasks))[at])

    def _prioritised(self) -> int:
        unknown = np.isnan(self.success_N)
        assumed = _UNKNOWN if unknown.all() else float(self.success_N[~unknown].mean())
        weight_N = np.maximum(1.0 - np.where(unknown, assumed, self.success_N), _LEAST_WEIGHT)
        if len(set(self.latest)) < len(self.tasks):
            weight_N[self.latest] = 0.0
        return int(self._keyed().choice(len(self.tasks), p=weight_N / weight_N.sum()))

    def _within_reach(self) -> int:
        near = self.easiest_first_N[: max(1, round(self.reach * len(self.tasks)))]
        fresh = near[self.times_N[near] == self.times_N[near].min()]
        return int(fresh[self._keyed().integers(len(fresh))])

    def _keyed(self) -> np.random.Generator:
        return rng.generator(self.seed, "curriculum", self.order, self.name, self.given)

    def _by_ease(self) -> NDArray[np.int64]:
        """The tasks from easy to hard: by pass rate (their mean where a task has none), else by level; then keyed."""
        known = self.success_N[np.isfinite(self.success_N)]
        if len(known):
            hardness_N = -np.where(np.isnan(self.success_N), known.mean(), self.success_N)
        else:
            levels = [level_of(t) for t in self.tasks]
            if None in levels:
                raise UserError(
                    f"envs.{self.name}.order=easy_to_hard needs envs.{self.name}.measured (`k2rl measure RECIPE --out "
                    "FILE`), or a tag level-N on every task"
                )
            hardness_N = np.asarray(levels, dtype=np.float64)
        ties_N = rng.generator(self.seed, "curriculum", "ties", self.name).permutation(len(self.tasks))
        return np.lexsort((ties_N, hardness_N))
