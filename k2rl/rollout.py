"""Drive environments with a sampler until each task's group is complete.

Token in, token out: the ids and log-probs the engine produced are kept as they are, text is decoded for the
environment alone. With `pause_share` below 1 an iteration ends once that share of its rollouts is done; the rest
keep their segments (with their own log-probs, temperature and policy version) and go on first in the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from k2rl import budget, rng
from k2rl.chat import Chat
from k2rl.env import Env, single_turn
from k2rl.envpool import EnvPool
from k2rl.episodes import Episodes, Stepped
from k2rl.protocols import Completion, Request, Sampler
from k2rl.trajectory import PendingGroup, Trajectory
from k2rl.types import End, Group, Segment, Status, Task, Verdict
from k2rl.watchdog import Call


@dataclass(frozen=True)
class _EnvWork:
    """Calls under way on a worker, and who takes their results. `awaited`: the answer steers what is sampled next, so
    it is waited for in order."""

    futures: Sequence[Future[Any]]
    apply: Callable[[], None]
    awaited: bool

    @property
    def done(self) -> bool:
        return all(f.done() for f in self.futures)


class RolloutDriver:
    """Rolls tasks out into groups.

    Args:
        purpose: what the draws are keyed by; training and evaluation differ in it.
        context: the most tokens the model takes; None where it does not matter.
        estimates: the budgets of single tasks by their id, where they are estimated (see `budget.py`).

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
        estimates: Mapping[str, int] | None = None,
    ) -> None:
        self.pool, self.sampler, self.chat = pool, sampler, chat
        self.episodes = Episodes(pool, seed)
        self.seed, self.group_size, self.pause_share = seed, group_size, pause_share
        self.context, self.purpose = context, purpose
        self.estimates = dict(estimates or {})
        self.pending: list[PendingGroup] = []
        self._by_request: dict[str, list[Trajectory]] = {}
        self._open: dict[str, int] = {}
        self._env_work: list[_EnvWork] = []
        self._requests = 0
        self._groups = 0
        self._generation = Call("")
        self._at_envs = False

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
        with self.pool.watchdog.watching(self._awaited_of_sampler) as self._generation:
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
        self.pool.give_up()
        waiting, self._env_work = self._env_work, []
        for work in waiting:
            if self._by_request and not work.awaited and not work.done:
                self._env_work.append(work)
            else:
                self._finish(work)
        if not self._by_request:
            return
        completions = self.sampler.poll()
        if completions:
            self._generation.touch()
        self._sort(completions)

    def _sort(self, completions: Sequence[Completion]) -> None:
        """What becomes of samples, by how they ended; those that were interrupted wait."""
        acting = []
        for completion in completions:
            trajectory = self._take(completion)
            if completion.finish == "length":
                self._end(trajectory, End.BUDGET, Verdict.malformed(f"cut at its budget of {trajectory.limit} tokens"))
            elif completion.finish == "repeat":
                self._end(trajectory, End.REPEAT, Verdict.malformed("ended because it repeated itself"))
            elif completion.finish == "stop":
                acting.append(trajectory)
        self._act(acting)

    def _finish(self, work: _EnvWork) -> None:
        self._at_envs = True
        self.pool.wait(*work.futures)
        self._at_envs = False
        work.apply()
        self._generation.touch()

    def _awaited_of_sampler(self) -> str:
        """What is being waited for, unless it is an environment, whose own calls are named."""
        return "" if self._at_envs else f"the sampler to finish one of {sum(self._open.values())} samples"

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
                    max_repeats=self.pool.specs[first.task.env].budget.max_repeats,
                )
            )
        self.sampler.submit(requests)

    def limit(self, task: Task) -> int:
        """The budget of a task, in tokens."""
        spec, env = self.pool.specs[task.env], self.pool.templates[task.env]
        return budget.limit(task, spec.budget, env.budget, self.estimates)

    # --- the environment's side --------------------------------------------------------------------------

    def _new_group(self, task: Task, iteration: int, copy: int, temperature: Callable[[str], float]) -> PendingGroup:
        limit, heat = self.limit(task), temperature(task.env)
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
        futures = self.episodes.reset(group.trajectories)

        def apply() -> None:
            shared: dict[tuple[int, ...], list[Trajectory]] = {}
            encoded: dict[str, tuple[int, ...]] = {}
            for trajectory, future in zip(group.trajectories, futures, strict=True):
                result = self.episodes.result(future, trajectory, "reset")
                if isinstance(result, Verdict):
                    self._end(trajectory, End.ERROR, result)
                    continue
                key = repr(result.messages)
                if key not in encoded:
                    encoded[key] = self.chat.prompt(result.messages)
                trajectory.prompt_ids = encoded[key]
                if not self._fits(trajectory):
                    self._end(trajectory, End.ENV_LIMIT, self._too_long(trajectory))
                    continue
                shared.setdefault(encoded[key], []).append(trajectory)
            self._generate(list(shared.values()))

        self._env_work.append(_EnvWork(futures, apply, awaited=True))

    def _act(self, trajectories: Sequence[Trajectory]) -> None:
        """Hand finished turns to their environments on their workers."""
        for trajectory in trajectories:
            trajectory.actions.append(self.chat.action(trajectory.said))
            trajectory.said = ()
        for trajectory, future in zip(trajectories, self.episodes.step(trajectories), strict=True):
            steers = self.pause_share < 1 or not single_turn(self.pool.templates[trajectory.task.env])
            self._env_work.append(_EnvWork([future], partial(self._stepped, trajectory, future), awaited=steers))

    def _stepped(self, trajectory: Trajectory, future: Future[Stepped]) -> None:
        result = self.episodes.result(future, trajectory, "step")
        if isinstance(result, Verdict):
            self._end(trajectory, End.ERROR, result)
        else:
            self._answered(trajectory, result)

    def _answered(self, trajectory: Trajectory, result: Stepped) -> None:
        """Take in what the environment made of a turn; ask for the next one if there is one."""
        trajectory.env_return += result.reward
        if result.verdict is not None:
            trajectory.verdicts.append(result.verdict)
        if result.terminated or result.truncated:
            cut = result.truncated and not result.terminated
            self._end(trajectory, End.ENV_LIMIT if cut else End.STOP, None)
            return
        trajectory.segments.append(Segment("env", self.chat.extend(result.messages)))
        if trajectory.used >= trajectory.limit:
            self._end(trajectory, End.BUDGET, Verdict.malformed(f"used its budget of {trajectory.limit} tokens"))
        elif not self._fits(trajectory):
            self._end(trajectory, End.ENV_LIMIT, self._too_long(trajectory))
        else:
            self._generate([[trajectory]])

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
        # A remote sampler's may have finished before it heard of the pause: their environments answer first.
        while self._env_work or self._by_request:
            waiting, self._env_work = self._env_work, []
            for work in waiting:
                self._finish(work)
            self._sort(self.sampler.abort())

    def state(self) -> list[dict[str, Any]]:
        """The unfinished groups as JSON."""
        with self.pool.watchdog.watching("the snapshots of paused environments"):
            return [g.to_json() for g in self.pending]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> list[Task]:
        """Take the unfinished groups back; returns the tasks whose groups must start anew."""
        restart = []
        for saved in state:
            group = PendingGroup.from_json(saved, self._next_worker())
            states = [t["snapshot"] for t in saved["trajectories"]]
            paused = [(t, s) for t, s in zip(group.trajectories, states, strict=True) if t.end is None]
            revived = self.episodes.revive(paused)
            self.pool.wait(*revived)
            results = [self.episodes.result(f, t, "restore") for (t, _), f in zip(paused, revived, strict=True)]
            if any(isinstance(result, Verdict) for result in results):
                restart.append(group.task)
            else:
                self.pending.append(group)
        return restart


def multi_turn(envs: Mapping[str, Env]) -> list[str]:
    """The names of the environments whose episodes may take more than one turn."""
    return [name for name, env in envs.items() if not single_turn(env)]
