"""Environments in a process of their own (`rollout.worker_processes`): a worker's thread steps what lives there.

The process has what `setup()` loads, and an instance for each rollout; here is a `RemoteEnv` for each, which passes on
what a rollout needs: reset, step, snapshot, restore. So heavy environments get processors of their own, and in a
cluster machines, and one that takes its process with it costs the rollouts there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from k2rl import plugins
from k2rl.cluster.worker import Worker, WorkerGoneError, ask
from k2rl.env import Env
from k2rl.errors import UnavailableError, UserError, own_frame
from k2rl.types import Task

Told = tuple[str, Any]


class EnvError(Exception):
    """What an environment raised in its process, as text."""


class LostError(Exception):
    """The environment's state went with a thread or a process, and can't be rebuilt."""


class EnvHost:
    """The process's side. It answers with `("ok", result)`, or with the kind of an error and its text."""

    busy = False

    def __init__(self, environments: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        self._environments = environments
        self._ready: dict[str, Env] = {}
        self._live: dict[int, Env] = {}
        self._spawned = 0

    def setup(self, name: str) -> Told:
        plugin, arguments = self._environments[name]
        env = plugins.make_env(plugin, arguments)
        told = _told(env.setup)
        self._ready[name] = env
        return told

    def spawn(self, name: str, dropped: Sequence[int]) -> Told:
        """The number of a new instance; those of rollouts that are over are forgotten."""
        for number in dropped:
            del self._live[number]
        self._spawned += 1
        kind, env = _told(self._ready[name].spawn)
        if kind != "ok":
            return kind, env
        self._live[self._spawned] = env
        return "ok", self._spawned

    def call(self, number: int, method: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Told:
        return _told(lambda: getattr(self._live[number], method)(*arguments, **named))

    def close(self, name: str) -> Told:
        return _told(self._ready[name].close)


def _told(work: Callable[[], Any]) -> Told:
    """This is the boundary to plug-ins: whatever they raise (`SystemExit` too) is their own failure."""
    try:
        return "ok", work()
    except UnavailableError as error:
        return "unavailable", str(error)
    except UserError as error:
        return "user", str(error)
    except (Exception, SystemExit) as error:
        frame = own_frame(error)
        place = f"{frame.name}, line {frame.lineno} of {Path(frame.filename).name}"
        return "raised", f"{type(error).__name__}: {error} ({place})"


class RemoteEnv(Env):
    """An environment whose other end is in a worker's process. Touched by one thread, as everything that is set up.

    Args:
        on_lost: called when the process is found to have ended.
    """

    def __init__(self, worker: Worker, name: str, on_lost: Callable[[], None]) -> None:
        self._worker, self._name, self._on_lost = worker, name, on_lost
        self._dropped: list[int] = []
        self._number = 0

    def setup(self) -> None:
        self._ask("setup", self._name)

    def spawn(self) -> RemoteEnv:
        dropped, self._dropped[:] = list(self._dropped), []
        episode = RemoteEnv(self._worker, self._name, self._on_lost)
        # One list for all: who is dropped anywhere is told with the next that is spawned.
        episode._number, episode._dropped = self._ask("spawn", self._name, dropped), self._dropped
        return episode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        told: tuple[str, dict[str, Any]] = self._call("reset", seed=seed, options=options)
        return told

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        told: tuple[str, float, bool, bool, dict[str, Any]] = self._call("step", action)
        return told

    def snapshot(self) -> bytes | None:
        told: bytes | None = self._call("snapshot")
        return told

    def restore(self, task: Task, state: bytes) -> None:
        self._call("restore", task, state)

    def close(self) -> None:
        self._ask("close", self._name)

    def __del__(self) -> None:
        if self._number:
            self._dropped.append(self._number)

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self._ask("call", self._number, method, arguments, named)

    def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            kind, content = ask(self._worker, method, *arguments)
        except WorkerGoneError as gone:
            self._on_lost()
            raise LostError(str(gone)) from None
        if kind == "ok":
            return content
        raise {"unavailable": UnavailableError, "user": UserError, "raised": EnvError}[kind](content)
