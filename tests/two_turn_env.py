"""Environments for the tests: two turns, failing, slow, seeded."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np

from k2rl import Env, SingleTurnEnv, Split, Task, UnicodeText, Verdict
from k2rl.errors import UnavailableError


class TwoTurn(Env):
    """Say a number, be told to double it, say the double."""

    budget = 24
    max_turns = 2

    def __init__(self, snapshots: bool = False, replay: bool = True) -> None:
        self.snapshots = snapshots
        self.replayable = replay  # type: ignore[misc]

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        for n in range(0 if split == "train" else 1, 40, 2):
            yield Task(f"Say {n}", answer=str(2 * n), reference={"n": n})

    def gold(self, task: Task) -> Sequence[str]:
        n = int(task.reference["n"])
        return [str(n), str(2 * n)]

    def reset_task(self, task: Task) -> tuple[str, dict[str, Any]]:
        self.said: list[str] = []
        return str(task.prompt), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.said.append(action)
        if len(self.said) == 1:
            return "Double it", 0.0, False, False, {}
        verdict = Verdict.of(self.said == list(self.gold(self.task)))
        return "", verdict.score or 0.0, True, False, {"verdict": verdict}

    def snapshot(self) -> bytes | None:
        return json.dumps(self.said).encode() if self.snapshots else None

    def restore(self, task: Task, state: bytes) -> None:
        self.task, self.said = task, json.loads(state)


class Haiku(SingleTurnEnv):
    """Open-ended, corrupted by whatever `corrupted` is, judged by whatever `rubrics` are."""

    budget = 24
    open_ended = True

    def __init__(self, rubrics: Any = (), corrupted: Any = None) -> None:
        self.rubrics = rubrics  # type: ignore[misc]
        self.corrupted = corrupted

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        for n in range(0 if split == "train" else 1, 40, 2):
            yield Task(f"A haiku about {n}")

    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.pending()

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Any:
        return self.corrupted


class Hanging(TwoTurn):
    """Does not come back from a step whose action has an x until `release` is set."""

    release = threading.Event()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if "x" in action:
            self.release.wait()
        return super().step(action)


class Stalling(SingleTurnEnv):
    """Does not come back from starting one of its tasks."""

    budget = 8
    release = threading.Event()

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        for n in range(4):
            yield Task(f"{split} {n}", reference={"n": n})

    def reset_task(self, task: Task) -> tuple[str, dict[str, Any]]:
        if task.reference["n"] == 3:
            self.release.wait()
        return super().reset_task(task)

    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.of(len(response) % 2 == 0)


class Broken(SingleTurnEnv):
    """Its verifier raises on what starts with an x."""

    budget = 8

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        for n in range(20):
            yield Task(f"{split} {n}")

    def verify(self, task: Task, response: str) -> Verdict:
        if response.startswith("x"):
            raise RuntimeError("the grader fell over")
        return Verdict.of(response == "yes")


class Luck(SingleTurnEnv):
    """Right by chance, in some tasks more often than in others, if it ends: a random model often does within 160
    tokens."""

    budget = 160

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        for n in range(0 if split == "train" else 1, 100, 2):
            yield Task(f"{split} {n}", reference={"n": n})

    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.of(sum(map(ord, response)) % 50 < 10 + task.reference["n"])


class Empty(SingleTurnEnv):
    """Has no tasks."""

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return []


class Nowhere(Broken):
    """No machine can run it."""

    def __init__(self, setup_only: bool = False) -> None:
        if not setup_only:
            raise UnavailableError("it needs a jail")

    def setup(self) -> None:
        raise UnavailableError("it needs a jail")


class Overlapping(SingleTurnEnv):
    """Its splits are the same."""

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        yield from (Task(f"task {n}") for n in range(5))

    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.of(False)


class PlainGym(gymnasium.Env[str, str]):
    """No verdicts: a step pays one point per letter a, up to 4."""

    observation_space = UnicodeText()
    action_space = UnicodeText()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        return f"Write {int(self.np_random.integers(1, 10**6))}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "", float(min(4, action.count("a"))), True, False, {}


class Deadly(TwoTurn):
    """Takes its process with it at an action that has an x. Says in which process it answers."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if "x" in action:
            os._exit(3)
        observation, reward, terminated, truncated, info = super().step(action)
        return f"{observation} {os.getpid()}" if observation else "", reward, terminated, truncated, info
