"""A worker: an object that lives in another process, and is talked to by the names of its methods.

    worker.send("load", bucket)        # returns at once; calls run in the order they were sent
    worker.receive()                   # the result of the oldest call that was not received yet

Workers of one kind work at the same time when all are sent to before any is received from (`ask_all`). An object with
`busy` and `step()` also works by itself between calls; what its steps return is `produced`.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from k2rl.errors import RunError, UserError


class WorkerGoneError(RunError):
    """A worker's process has ended, or gives no sign of life; another one may take its place."""


@dataclass(frozen=True)
class Job:
    """What a worker hosts: `target` is `module:Class`, made with `argument`. `name` is what errors call it; one that
    gives no sign of life for `hang_s` seconds is given up, after it has written where it is. `environment` are
    variables of its process, `path` is where modules are looked for, `folder` where relative paths begin."""

    name: str
    target: str
    argument: Any
    hang_s: float = 1800.0
    environment: Mapping[str, str] = field(default_factory=dict)
    path: Sequence[str] = field(default_factory=lambda: [place or os.getcwd() for place in sys.path])
    folder: str = field(default_factory=os.getcwd)

    def make(self) -> Any:
        """The object; in the worker's process."""
        os.environ |= self.environment
        if os.path.isdir(self.folder):
            os.chdir(self.folder)
        sys.path[:] = [*self.path, *(p for p in sys.path if p not in self.path)]
        module, _, kind = self.target.partition(":")
        return getattr(importlib.import_module(module), kind)(self.argument)

    def error(self, raised: BaseException) -> tuple[bool, str]:
        """What is told of an error inside: whether it is the user's, and its text."""
        if isinstance(raised, UserError | RunError):
            return isinstance(raised, UserError), str(raised)
        return False, f"{self.name}: {type(raised).__name__}: {raised}"

    def watch(self) -> None:
        """The next thing the process does takes `hang_s` at most, or it writes the stacks of all its threads."""
        faulthandler.dump_traceback_later(self.hang_s, file=2)


class Worker(Protocol):
    """See the module.

    All of it raises `WorkerGoneError` where there is no worker any more, `UserError` where that was raised inside, and
    `RunError` for whatever else went wrong there.
    """

    job: Job
    pid: int
    machine: str
    """Which machine it is on; empty: this one."""
    address: str
    """Where processes of other workers reach it."""

    def shared(self, value: Any) -> Any:
        """The value as an argument for several workers of this kind, which is packed once."""

    def neighbour(self, job: Job) -> Worker:
        """Another worker on the same machine."""

    def send(self, method: str, *arguments: Any) -> None:
        """Have it do something; its result is to be received."""

    def tell(self, method: str, *arguments: Any) -> None:
        """Have it do something whose result nobody asks for; what goes wrong shows with what is asked next."""

    def receive(self) -> Any:
        """Wait for the result of the oldest call under way."""

    def produced(self, wait_s: float) -> list[Any]:
        """What its steps have returned since this was last asked; waits so long for something where nothing has."""

    def close(self, at_once: bool = False) -> None:
        """End the process: by itself if it does within a while, or at once."""


def ask(worker: Worker, method: str, *arguments: Any) -> Any:
    worker.send(method, *arguments)
    return worker.receive()


def ask_all(workers: Sequence[Worker], method: str, *arguments: Any) -> list[Any]:
    """The same of all at once. Where some fail, the others have answered before the first failure is raised."""
    return asked_each(workers, method, [arguments] * len(workers))()


def asked_each(workers: Sequence[Worker], method: str, arguments: Sequence[Sequence[Any]]) -> Callable[[], list[Any]]:
    """The first half of `ask_all`, with arguments for each: they have been asked. What is returned is the second half,
    to be called once."""
    failed, asked = list[Exception](), list[Worker]()
    for worker, own in zip(workers, arguments, strict=True):
        try:
            worker.send(method, *own)
            asked.append(worker)
        except RunError as error:
            failed.append(error)

    def answers() -> list[Any]:
        told = list[Any]()
        for worker in asked:
            try:
                told.append(worker.receive())
            except (RunError, UserError) as error:
                failed.append(error)
        if failed:
            # Who is gone is why the others failed in what they do together.
            raise next((error for error in failed if isinstance(error, WorkerGoneError)), failed[0])
        return told

    return answers


def close_all(workers: Sequence[Worker]) -> None:
    """Close each, also where one can't be; raises what the first failed with."""
    failed: list[BaseException] = []
    for worker in workers:
        try:
            worker.close()
        except BaseException as error:
            failed.append(error)
    if failed:
        raise failed[0]
