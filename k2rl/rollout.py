"""Drive environments with a sampler until each task's group is complete.

Token in, token out: the ids and log-probs the engine produced are kept as they are, text is decoded for the
environment alone. With `pause_share` below 1 an iteration ends once that share of its rollouts is done; the rest
keep their segments (with their own log-probs, temperature and policy version) and go on first in the next one.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from k2rl import budget, rng
from k2rl.chat import Chat
from k2rl.env import Env, single_turn
from k2rl.envpool import EnvPool
from k2rl.errors import own_frame
from k2rl.protocols import Completion, Request, Sampler
from k2rl.trajectory import PendingGroup, Trajectory
from k2rl.types import End, Group, Message, Segment, Status, Task, Verdict


@dataclass(frozen=True)
class _EnvWork:
    """What a worker is doing. `awaited`: its answer steers what is sampled next, so it is waited for in order."""

    future: Future[list[Callable[[], None]]]
    awaited: bool

    def apply(self) -> None:
        for change in self.future.result():
            change()


class RolloutDriver:
    """Rolls tasks out into groups.

    Args:
        purpose: what the draws are keyed by; training and evaluation differ in it.
        context: the most tokens the model takes; None where it does not matter.

    Environments whose answers steer what is sampled next are waited for in order, so that a run does not depend on
    their timing.
    """

    def __init__(
        self,
        pool: EnvPool,
        sampler: Sampler,
        chat: Chat,
        *,
        seed: int,
        group_size: int,
        context: int | None = None,
        pause_share: float = 1.0,
        purpose: str = "sample",
    ) -> None:
        self.pool, self.sampler, self.chat = pool, sampler, chat
        self.seed, self.group_size, self.pause_share = seed, group_size, pause_share
        self.context, self.purpose = context, purpose
        self.pending: list[PendingGroup] = []
        self._by_request: dict[str, list[Trajectory]] = {}
        self._open: dict[str, int] = {}
        self._env_work: list[_EnvWork] = []
        self._requests = 0
        self._groups = 0

    def collect(
        self,
        tasks: Sequence[Task],
        iteration: int,
        temperature: Callable[[str], float],
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Group]:
        """Complete groups: those left over from before first, then those of `tasks`.

        `temperature` maps an env name to this iteration's. `on_progress(done, total)` counts rollouts.
        """
        carried, seen = self.pending, Counter[str]()
        fresh = []
        for task in tasks:
            fresh.append(self._new_group(task, iteration, seen[task.id], temperature))
            seen[task.id] += 1
        groups = [*carried, *fresh]
        total = sum(len(g.trajectories) for g in groups)
        # At least one rollout is finished each time, or the last few would be put off for ever.
        least = min(total, sum(g.finished for g in carried) + 1)
        enough = total if self.pause_share >= 1 else max(int(self.pause_share * total), least)
        self._generate([[t] for g in carried for t in g.trajectories if t.end is None])
        for group in fresh:
            self._start(group)
        while (done := sum(g.finished for g in groups)) < enough:
            on_progress(done, total)
            self._advance()
        on_progress(done, total)
        self._pause()
        self.pending = [g for g in groups if not g.complete]
        return [Group(g.task, tuple(t.finish() for t in g.trajectories)) for g in groups if g.complete]

    # --- one step of everything --------------------------------------------------------------------------

    def _advance(self) -> None:
        """Let the environments' answers in, then the sampler's. Waits only when nothing else can move."""
        waiting, self._env_work = self._env_work, []
        for work in waiting:
            if self._by_request and not work.awaited and not work.future.done():
                self._env_work.append(work)
            else:
                work.apply()
        if not self._by_request:
            return
        completions = self.sampler.poll()
        acting: dict[tuple[str, int], list[Trajectory]] = {}
        for completion in completions:
            trajectory = self._take(completion)
            if completion.finish == "length":
                self._end(trajectory, End.BUDGET, Verdict.malformed(f"cut at its budget of {trajectory.limit} tokens"))
            else:
                acting.setdefault((trajectory.task.env, trajectory.worker), []).append(trajectory)
        for (name, worker), trajectories in acting.items():
            self._act(name, worker, trajectories)

    def _take(self, completion: Completion) -> Trajectory:
        """Add a completion's tokens to its trajectory."""
        waiting = self._by_request[completion.request_id]
        trajectory = waiting[completion.index]
        if completion.ids:
            segment = Segment("policy", completion.ids, completion.logprobs, trajectory.temperature, completion.version)
            trajectory.segments.append(segment)
            trajectory.said += completion.ids
        self._open[completion.request_id] -= 1
        if not self._open[completion.request_id]:
            del self._by_request[completion.request_id], self._open[completion.request_id]
        return trajectory

    def _generate(self, shared: Sequence[list[Trajectory]]) -> None:
        """Ask for the next policy tokens; trajectories listed together share their context."""
        requests = []
        for trajectories in shared:
            first = trajectories[0]
            self._requests += 1
            request_id = f"{first.task.id}/{self._requests}"
            self._by_request[request_id] = list(trajectories)
            self._open[request_id] = len(trajectories)
            requests.append(
                Request(
                    id=request_id,
                    prompt_ids=first.context_ids,
                    keys=tuple(
                        rng.key(self.seed, self.purpose, t.born, t.task.id, t.copy, t.k, len(t.actions))
                        for t in trajectories
                    ),
                    max_new_tokens=first.limit - first.used,
                    temperature=first.temperature,
                    stop_ids=self.chat.stop_ids,
                    first_position=len(first.said),
                )
            )
        self.sampler.submit(requests)

    # --- the environment's side --------------------------------------------------------------------------

    def _new_group(self, task: Task, iteration: int, copy: int, temperature: Callable[[str], float]) -> PendingGroup:
        spec, env = self.pool.specs[task.env], self.pool.templates[task.env]
        limit = budget.limit(task, spec.budget, env.budget)
        heat = temperature(task.env)
        worker = self._next_worker()
        return PendingGroup(
            task, [Trajectory(task, k, limit, heat, iteration, copy, worker) for k in range(self.group_size)]
        )

    def _next_worker(self) -> int:
        """Groups go to the workers in turn, and stay there."""
        self._groups += 1
        return self._groups % self.pool.workers

    def _start(self, group: PendingGroup) -> None:
        """Reset the group's environments on a worker, then ask for their first turn together."""

        def work() -> list[Callable[[], None]]:
            started = [self._reset(t) for t in group.trajectories]

            def apply() -> None:
                shared: dict[tuple[int, ...], list[Trajectory]] = {}
                encoded: dict[str, tuple[int, ...]] = {}
                for trajectory, result in zip(group.trajectories, started, strict=True):
                    if isinstance(result, Verdict):
                        self._end(trajectory, End.ERROR, result)
                        continue
                    key = repr(result)
                    if key not in encoded:
                        encoded[key] = self.chat.prompt(result)
                    trajectory.prompt_ids = encoded[key]
                    if not self._fits(trajectory):
                        self._end(trajectory, End.ENV_LIMIT, self._too_long(trajectory))
                        continue
                    shared.setdefault(encoded[key], []).append(trajectory)
                self._generate(list(shared.values()))

            return [apply]

        worker = group.trajectories[0].worker
        self._env_work.append(_EnvWork(self.pool.submit(worker, work), awaited=True))

    def _reset(self, trajectory: Trajectory) -> Sequence[Message] | Verdict:
        try:
            trajectory.env = self.pool.spawn(trajectory.worker, trajectory.task.env)
            observation, info = trajectory.env.reset(
                seed=rng.key(self.seed, "env", trajectory.task.id) % 2**31, options={"task": trajectory.task}
            )
        except Exception as error:
            return _failure(error, "reset")
        return _messages(observation, info)

    def _act(self, name: str, worker: int, trajectories: Sequence[Trajectory]) -> None:
        """Hand finished turns to their environments on a worker."""
        for trajectory in trajectories:
            trajectory.actions.append(self.chat.action(trajectory.said))
            trajectory.said = ()

        def work() -> list[Callable[[], None]]:
            return [self._step(t) for t in trajectories]

        steers = self.pause_share < 1 or not single_turn(self.pool.templates[name])
        self._env_work.append(_EnvWork(self.pool.submit(worker, work), awaited=steers))

    def _step(self, trajectory: Trajectory) -> Callable[[], None]:
        """On a worker: one env step. Returns what to do about it on the loop's thread."""
        assert trajectory.env is not None
        try:
            observation, reward, terminated, truncated, info = trajectory.env.step(trajectory.actions[-1])
            reward, verdict, messages = float(reward), info.get("verdict"), _messages(observation, info)
            if not isinstance(verdict, Verdict | None):
                raise TypeError(f"info['verdict'] is a {type(verdict).__name__}, not a k2rl.Verdict")
        except Exception as error:  # the rollout boundary: whatever an environment raises is its failure
            failure = _failure(error, "step")
            return lambda: self._end(trajectory, End.ERROR, failure)

        def apply() -> None:
            trajectory.env_return += reward
            if verdict is not None:
                trajectory.verdicts.append(verdict)
            if terminated or truncated:
                self._end(trajectory, End.ENV_LIMIT if truncated and not terminated else End.STOP, None)
                return
            trajectory.segments.append(Segment("env", self.chat.extend(messages)))
            if trajectory.used >= trajectory.limit:
                self._end(trajectory, End.BUDGET, Verdict.malformed(f"used its budget of {trajectory.limit} tokens"))
            elif not self._fits(trajectory):
                self._end(trajectory, End.ENV_LIMIT, self._too_long(trajectory))
            else:
                self._generate([[trajectory]])

        return apply

    def _fits(self, trajectory: Trajectory) -> bool:
        left = trajectory.limit - trajectory.used
        return self.context is None or len(trajectory.context_ids) + left <= self.context

    def _too_long(self, trajectory: Trajectory) -> Verdict:
        """The environment wrote more than the model takes: not the answer's doing, so no score."""
        tokens = len(trajectory.context_ids)
        return Verdict.failure(Status.INFRA_ERROR, f"{tokens} tokens and the budget exceed the context {self.context}")

    def _end(self, trajectory: Trajectory, end: End, verdict: Verdict | None) -> None:
        trajectory.end, trajectory.env = end, None
        if verdict is not None:
            trajectory.verdicts.append(verdict)
        if trajectory.said:
            trajectory.actions.append(self.chat.decode(trajectory.said))
            trajectory.said = ()

    # --- pause and resume --------------------------------------------------------------------------------

    def _pause(self) -> None:
        """Stop generating: what was said so far stays, as a segment of its own."""
        while self._env_work:
            waiting, self._env_work = self._env_work, []
            for work in waiting:
                work.apply()
        for completion in self.sampler.abort():
            self._take(completion)

    def state(self) -> list[dict[str, Any]]:
        """The unfinished groups as JSON."""
        return [g.to_json() for g in self.pending]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> list[Task]:
        """Take the unfinished groups back; returns the tasks whose groups must start anew."""
        restart = []
        for saved in state:
            worker = self._next_worker()
            revived = [self.pool.submit(worker, partial(self._revive, t, worker)) for t in saved["trajectories"]]
            trajectories = [t for work in revived if (t := work.result()) is not None]
            task = Task.from_json(saved["task"])
            if len(trajectories) < len(revived):
                restart.append(task)
            else:
                self.pending.append(PendingGroup(task, trajectories))
        return restart

    def _revive(self, saved: Mapping[str, Any], worker: int) -> Trajectory | None:
        """On a worker: a trajectory with its environment restored or replayed; None if neither can be."""
        trajectory = Trajectory.from_json(saved, worker)
        if trajectory.end is not None:
            return trajectory
        env = trajectory.env = self.pool.spawn(worker, trajectory.task.env)
        if saved["snapshot"] is not None:
            env.restore(trajectory.task, base64.b64decode(saved["snapshot"]))
            return trajectory
        if not env.replayable and trajectory.actions:
            return None
        if isinstance(self._reset(trajectory), Verdict):
            return None
        for action in trajectory.actions:
            trajectory.env.step(action)
        return trajectory


def _messages(observation: Any, info: Mapping[str, Any]) -> Sequence[Message]:
    """What the environment says: `info["messages"]`, else the observation as a user's turn."""
    messages: Sequence[Message] = info.get("messages") or ({"role": "user", "content": str(observation)},)
    return messages


def _failure(error: Exception, where: str) -> Verdict:
    frame = own_frame(error)
    place = f"{frame.name}, line {frame.lineno} of {Path(frame.filename).name}"
    return Verdict.failure(Status.VERIFIER_ERROR, f"{where} raised {type(error).__name__}: {error} ({place})")


def multi_turn(envs: Mapping[str, Env]) -> list[str]:
    """The names of the environments whose episodes may take more than one turn."""
    return [name for name, env in envs.items() if not single_turn(env)]
