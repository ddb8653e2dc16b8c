"""A worker that is a Ray actor. Import this where Ray is."""

from __future__ import annotations

import faulthandler
import os
import tempfile
import time
import traceback
from collections import deque
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnschedulableError, GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from k2rl.cluster.worker import Job, WorkerGoneError
from k2rl.errors import RunError, UserError

_STEPS_S, _AHEAD = 0.1, 2
"""Seconds that an actor steps at a time, and so many times it is asked to in advance."""
_GRACE_S = 20.0
_START_S = 600.0
"""What an actor has to start in, before it can say where it is."""
Answer = tuple[str, Any]


class Host:
    """The actor. It answers with `("ok", result)` or `("error", what Job.error says)`: exceptions need not travel."""

    def make(self, job: Job) -> Answer:
        """Make the object; answers with where it is: the process, its machine, the file for its stacks."""
        self.job, self.stacks = job, tempfile.NamedTemporaryFile("w", prefix="k2rl-stacks-")  # noqa: SIM115
        return self._answer(self._made)

    def call(self, method: str, *arguments: Any) -> Answer:
        return self._answer(lambda: getattr(self.hosted, method)(*arguments))

    def steps(self) -> Answer:
        """Step while the object is busy, for a moment or until something is made."""
        return self._answer(self._steps)

    def _made(self) -> tuple[int, str, str]:
        self.hosted: Any = self.job.make()
        return os.getpid(), ray.get_runtime_context().get_node_id(), self.stacks.name

    def _steps(self) -> list[Any]:
        until, made = time.monotonic() + _STEPS_S, list[Any]()
        while self.hosted.busy and not made and time.monotonic() < until:
            made += self.hosted.step()
        return made

    def _answer(self, work: Any) -> Answer:
        faulthandler.dump_traceback_later(self.job.hang_s, file=self.stacks)
        try:
            return "ok", work()
        except BaseException as error:
            traceback.print_exc()
            return "error", self.job.error(error)
        finally:
            faulthandler.cancel_dump_traceback_later()


class RayWorker:
    """The driver's side, which exists when the object does.

    Args:
        options: Ray's, for the actor: where it is placed, and what it takes.
    """

    def __init__(self, job: Job, options: dict[str, Any]) -> None:
        self.job = job
        self._actor = ray.remote(Host).options(**options).remote()
        self._calls: deque[Any] = deque()
        self._told: list[Any] = []
        self._steps: deque[Any] = deque()
        self._since = time.monotonic()
        self.pid, self._node, self._stacks = 0, "", ""
        try:
            self.pid, self._node, self._stacks = self._result(self._actor.make.remote(job), _START_S)
            self.machine = "" if self._node == ray.get_runtime_context().get_node_id() else self._node
            self.address = address_of(self._node)
        except BaseException:
            self.close()
            raise

    def shared(self, value: Any) -> Any:
        return ray.put(value)

    def neighbour(self, job: Job) -> RayWorker:
        return RayWorker(job, {"num_cpus": 0, "scheduling_strategy": self._there})

    def send(self, method: str, *arguments: Any) -> None:
        self._calls.append(self._asked(method, arguments))

    def tell(self, method: str, *arguments: Any) -> None:
        self._told.append(self._asked(method, arguments))

    def receive(self) -> Any:
        return self._result(self._calls.popleft())

    def produced(self, wait_s: float) -> list[Any]:
        while self._told:
            self._result(self._told.pop(0))
        self._ask_for_steps()
        made = list[Any]()
        while not made and ray.wait([self._steps[0]], timeout=wait_s)[0]:
            made = self._result(self._steps.popleft())
            self._since, wait_s = time.monotonic(), 0.0
            self._ask_for_steps()
        if time.monotonic() - self._since > self.job.hang_s + _GRACE_S:
            raise self._silent()
        return made

    def _ask_for_steps(self) -> None:
        """There are always some to come, so that the actor does not wait for whoever reads what it has made."""
        if not self._steps:
            self._since = time.monotonic()
        while len(self._steps) < _AHEAD:
            self._steps.append(self._actor.steps.remote())

    def close(self, at_once: bool = False) -> None:
        ray.kill(self._actor)

    @property
    def _there(self) -> NodeAffinitySchedulingStrategy:
        return NodeAffinitySchedulingStrategy(self._node, soft=False)

    def _asked(self, method: str, arguments: tuple[Any, ...]) -> Any:
        try:
            return self._actor.call.remote(method, *arguments)
        except RayError as error:
            raise self._failed(error) from None

    def _failed(self, error: RayError) -> RunError:
        """Ray's own trouble, such as a store that is full."""
        return RunError(f"{self.job.name}: {type(error).__name__}: {' '.join(str(error).split())}")

    def _result(self, reference: Any, least_s: float = 0.0) -> Any:
        try:
            kind, content = ray.get(reference, timeout=max(self.job.hang_s, least_s) + _GRACE_S)
        except GetTimeoutError:
            raise self._silent() from None
        except (RayActorError, ActorUnschedulableError) as gone:
            reason = " ".join(str(gone).split())
            raise WorkerGoneError(f"{self.job.name} has ended: {reason}") from None
        except RayError as error:
            raise self._failed(error) from None
        if kind == "error":
            of_user, text = content
            raise UserError(text) if of_user else RunError(text)
        return content

    def _silent(self) -> WorkerGoneError:
        """With its stacks, which somebody else on its machine reads: it does not answer itself."""
        place = "nobody knows, it has not started"
        if self._node:
            reading = ray.remote(_read).options(num_cpus=0, scheduling_strategy=self._there).remote(self._stacks)
            place = ray.get(reading, timeout=_GRACE_S)
        return WorkerGoneError(
            f"{self.job.name} has given no sign of life for {self.job.hang_s:g} s; where it is:\n{place}"
        )


def address_of(node: str) -> str:
    """A machine's address within its cluster."""
    (address,) = (str(known["NodeManagerAddress"]) for known in ray.nodes() if known["NodeID"] == node)
    return address


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")
