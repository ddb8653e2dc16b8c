"""Rollouts under way: what of them must outlast a pause, and a checkpoint."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from k2rl.env import Env
from k2rl.types import End, Rollout, Segment, Task, Verdict


@dataclass
class Trajectory:
    """A rollout under way. `said` are the ids of the current policy turn; `actions` the turns before it."""

    task: Task
    k: int
    limit: int
    temperature: float
    born: int
    copy: int = 0
    """How often its task had been handed out before in the same iteration: copies sample differently."""
    worker: int = 0
    env: Env | None = None
    generation: int = 0
    """Which of its worker's threads the environment was made on."""
    prompt_ids: tuple[int, ...] = ()
    segments: list[Segment] = field(default_factory=list)
    said: tuple[int, ...] = ()
    actions: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    env_return: float = 0.0
    end: End | None = None

    @property
    def used(self) -> int:
        return sum(len(s.ids) for s in self.segments if s.source == "policy")

    @property
    def context_ids(self) -> tuple[int, ...]:
        return (*self.prompt_ids, *(i for s in self.segments for i in s.ids))

    def finish(self) -> Rollout:
        assert self.end is not None
        return Rollout(
            self.task,
            self.k,
            self.prompt_ids,
            tuple(self.segments),
            self.end,
            tuple(self.verdicts),
            tuple(self.actions),
            self.env_return,
        )

    def to_json(self) -> dict[str, Any]:
        state = self.env.snapshot() if self.env is not None and self.end is None else None
        return {
            "task": self.task.to_json(),
            "k": self.k,
            "limit": self.limit,
            "temperature": self.temperature,
            "born": self.born,
            "copy": self.copy,
            "prompt_ids": list(self.prompt_ids),
            "segments": [s.to_json() for s in self.segments],
            "said": list(self.said),
            "actions": self.actions,
            "verdicts": [v.to_json() for v in self.verdicts],
            "env_return": self.env_return,
            "end": self.end,
            "snapshot": None if state is None else base64.b64encode(state).decode("ascii"),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], worker: int) -> Trajectory:
        """What `to_json` wrote, on a worker; its environment is the caller's to revive."""
        return cls(
            task=Task.from_json(data["task"]),
            k=data["k"],
            limit=data["limit"],
            temperature=data["temperature"],
            born=data["born"],
            copy=data["copy"],
            worker=worker,
            prompt_ids=tuple(data["prompt_ids"]),
            segments=[Segment.from_json(s) for s in data["segments"]],
            said=tuple(data["said"]),
            actions=list(data["actions"]),
            verdicts=[Verdict.from_json(v) for v in data["verdicts"]],
            env_return=data["env_return"],
            end=None if data["end"] is None else End(data["end"]),
        )


@dataclass
class PendingGroup:
    """A group that is not complete yet: all its trajectories, finished ones among them."""

    task: Task
    trajectories: list[Trajectory]

    @property
    def complete(self) -> bool:
        return self.finished == len(self.trajectories)

    @property
    def finished(self) -> int:
        return sum(t.end is not None for t in self.trajectories)

    def to_json(self) -> dict[str, Any]:
        return {"task": self.task.to_json(), "trajectories": [t.to_json() for t in self.trajectories]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], worker: int) -> PendingGroup:
        """As `Trajectory.from_json`, for all of them."""
        return cls(Task.from_json(data["task"]), [Trajectory.from_json(t, worker) for t in data["trajectories"]])
