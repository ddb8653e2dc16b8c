"""The environment's side of a rollout: calls that run on its worker, and what became of them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from k2rl import rng
from k2rl.env import Env
from k2rl.envpool import EnvCall, EnvPool, StuckError
from k2rl.errors import own_frame
from k2rl.remote_env import LostError
from k2rl.trajectory import Trajectory
from k2rl.types import Message, Status, Task, Verdict


@dataclass(frozen=True)
class Started:
    """An environment at the start of its episode, and what it says. `generation`: see `EnvPool`."""

    env: Env
    generation: int
    messages: Sequence[Message]


@dataclass(frozen=True)
class Stepped(Started):
    """The same after a step, with what came of it."""

    reward: float
    verdict: Verdict | None
    terminated: bool
    truncated: bool


R = TypeVar("R", bound=Started)


class Episodes:
    """Starts, steps and revives environments, each on its rollout's worker.

    Every call returns a future at once; read it by `result`, on the loop's thread.
    """

    def __init__(self, pool: EnvPool, seed: int) -> None:
        self.pool, self.seed = pool, seed

    def reset(self, trajectories: Sequence[Trajectory]) -> list[Future[Started]]:
        """New environments."""
        return self._submit("reset", [(t, partial(self._reset, t.task, t.worker)) for t in trajectories])

    def step(self, trajectories: Sequence[Trajectory]) -> list[Future[Stepped]]:
        """The latest action of each; after its earlier ones, where the environment went with an abandoned thread."""
        return self._submit("step", [(t, partial(self._step, t)) for t in trajectories])

    def revive(self, paused: Sequence[tuple[Trajectory, str | None]]) -> list[Future[Started]]:
        """Environments after all actions, from their snapshots where there are any."""
        return self._submit("restore", [(t, partial(self._revive, t, snapshot)) for t, snapshot in paused])

    def result(self, future: Future[R], trajectory: Trajectory, kind: str) -> R | Verdict:
        """What a settled call returned, its environment being the trajectory's from now on; a verdict if it failed.

        This is the rollout boundary: whatever an environment raises (`SystemExit` too) is its own failure.
        """
        try:
            result = future.result()
        except StuckError as error:
            return Verdict.failure(Status.TIMEOUT, str(error))
        except LostError as error:
            return Verdict.failure(Status.INFRA_ERROR, str(error))
        except (Exception, SystemExit) as error:
            frame = own_frame(error)
            place = f"{frame.name}, line {frame.lineno} of {Path(frame.filename).name}"
            return Verdict.failure(Status.VERIFIER_ERROR, f"{kind} raised {type(error).__name__}: {error} ({place})")
        trajectory.env, trajectory.generation = result.env, result.generation
        return result

    def _submit(self, kind: str, calls: Sequence[tuple[Trajectory, Callable[[], R]]]) -> list[Future[R]]:
        by_worker: dict[int, list[int]] = {}
        for n, (trajectory, _) in enumerate(calls):
            by_worker.setdefault(trajectory.worker, []).append(n)
        futures: dict[int, Future[R]] = {}
        for worker, numbers in by_worker.items():
            jobs = [(EnvCall(kind, t.task.env, t.task.id, t.k), work) for t, work in (calls[n] for n in numbers)]
            futures |= zip(numbers, self.pool.submit(worker, *jobs), strict=True)
        return [futures[n] for n in range(len(calls))]

    # --- on a worker -------------------------------------------------------------------------------------

    def _reset(self, task: Task, worker: int) -> Started:
        generation = self.pool.generations[worker]
        env = self.pool.spawn(task.env)
        observation, info = env.reset(seed=rng.key(self.seed, "env", task.id) % 2**31, options={"task": task})
        return Started(env, generation, _messages(observation, info))

    def _replay(self, trajectory: Trajectory, actions: Sequence[str]) -> Started:
        """A new environment after these actions.

        Raises:
            LostError: it can't be rebuilt like this.
        """
        if actions and not self.pool.templates[trajectory.task.env].replayable:
            raise LostError("its environment went with a thread that got stuck, and can't be replayed")
        started = self._reset(trajectory.task, trajectory.worker)
        for action in actions:
            started.env.step(action)
        return started

    def _step(self, trajectory: Trajectory) -> Stepped:
        env, generation = trajectory.env, self.pool.generations[trajectory.worker]
        *before, action = trajectory.actions
        if env is None or trajectory.generation != generation:
            env = self._replay(trajectory, before).env
        observation, reward, terminated, truncated, info = env.step(action)
        verdict = info.get("verdict")
        if not isinstance(verdict, Verdict | None):
            raise TypeError(f"info['verdict'] is a {type(verdict).__name__}, not a k2rl.Verdict")
        messages = _messages(observation, info)
        return Stepped(env, generation, messages, float(reward), verdict, terminated, truncated)

    def _revive(self, trajectory: Trajectory, snapshot: str | None) -> Started:
        if snapshot is None:
            return self._replay(trajectory, trajectory.actions)
        generation = self.pool.generations[trajectory.worker]
        env = self.pool.spawn(trajectory.task.env)
        env.restore(trajectory.task, base64.b64decode(snapshot))
        return Started(env, generation, ())


def _messages(observation: Any, info: Mapping[str, Any]) -> Sequence[Message]:
    """What the environment says: `info["messages"]`, else the observation as a user's turn."""
    messages: Sequence[Message] = info.get("messages") or ({"role": "user", "content": str(observation)},)
    return messages
