"""A worker that is a Ray actor. Import this where Ray is."""

from __future__ import annotations

import faulthandler
import os
import time
import traceback
from collections import deque
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from k2rl.cluster.worker import Job, WorkerGoneError
from k2rl.errors import RunError, UserError

_STEPS_S = 0.1
_GRACE_S = 20.0
Answer = tuple[str, Any]


class Host:
    """The actor. It answers with `("ok", result)` or `("error", what Job.error says)`: exceptions need not travel."""

    def make(self, job: Job) -> Answer:
        """Make the object; answers with this process's id."""
        self.job = job
        job.watch()
        return self._answer(self._made)

    def call(self, method: str, *arguments: Any) -> Answer:
        self.job.watch()
        return self._answer(lambda: getattr(self.hosted, method)(*arguments))

    def steps(self) -> Answer:
        """Step while the object is busy, for a moment or until something is made."""
        self.job.watch()
        return self._answer(self._steps)

    def _made(self) -> int:
        self.hosted: Any = self.job.make()
        return os.getpid()

    def _steps(self) -> list[Any]:
        until, made = time.monotonic() + _STEPS_S, list[Any]()
        while self.hosted.busy and not made and time.monotonic() < until:
            made += self.hosted.step()
        return made

    def _answer(self, work: Any) -> Answer:
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
        self._steps: Any = None
        self._since = time.monotonic()
        try:
            self.pid: int = self._result(self._actor.make.remote(job))
        except BaseException:
            self.close()
            raise

    def send(self, method: str, *arguments: Any) -> None:
        self._calls.append(self._actor.call.remote(method, *arguments))

    def tell(self, method: str, *arguments: Any) -> None:
        self._told.append(self._actor.call.remote(method, *arguments))

    def receive(self) -> Any:
        return self._result(self._calls.popleft())

    def produced(self, wait_s: float) -> list[Any]:
        while self._told:
            self._result(self._told.pop(0))
        if self._steps is None:
            self._steps, self._since = self._actor.steps.remote(), time.monotonic()
        ready, _ = ray.wait([self._steps], timeout=wait_s)
        if not ready:
            if time.monotonic() - self._since > self.job.hang_s + _GRACE_S:
                raise self._silent()
            return []
        under_way, self._steps = self._steps, None
        made: list[Any] = self._result(under_way)
        return made

    def close(self) -> None:
        ray.kill(self._actor)

    def _result(self, reference: Any) -> Any:
        try:
            kind, content = ray.get(reference, timeout=self.job.hang_s + _GRACE_S)
        except GetTimeoutError:
            raise self._silent() from None
        except RayActorError as gone:
            reason = " ".join(str(gone).split())
            raise WorkerGoneError(f"{self.job.name} has ended: {reason}") from None
        if kind == "error":
            of_user, text = content
            raise UserError(text) if of_user else RunError(text)
        return content

    def _silent(self) -> WorkerGoneError:
        return WorkerGoneError(
            f"{self.job.name} has given no sign of life for {self.job.hang_s:g} s; where it is stands in Ray's log of "
            "its process"
        )
