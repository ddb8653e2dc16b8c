"""Environments stepped by worker threads, never on the loop's thread.

Each worker sets up its own instance of each environment once; a rollout gets a shallow copy of it (see `env.py`) and
stays with its worker, so that what `setup()` made is only ever touched by one thread.

A thread can't be relied upon to end when it is told to. One whose call does not return within `run.stuck_s` is
abandoned: a fresh worker takes its place and the jobs behind it, and the process does not wait for it when it exits.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from k2rl import plugins
from k2rl.cluster.worker import Worker as Host
from k2rl.env import Env
from k2rl.errors import RunError, UnavailableError, UserError, users_code
from k2rl.progress import console
from k2rl.recipe import EnvSpec, RunConfig
from k2rl.remote_env import RemoteEnv
from k2rl.watchdog import Call, Watchdog

T = TypeVar("T")

_RECENT = 20
"""Calls by which an environment's share of stuck ones is judged."""
_LEAST_STUCK = 3
_CLOSE_S = 5.0


class StuckError(Exception):
    """An environment's call did not return within `run.stuck_s`; says where it is."""


@dataclass(frozen=True)
class EnvCall:
    """Which call of which environment: `kind` is reset, step, …"""

    kind: str
    env: str
    task: str = ""
    k: int = 0

    def __str__(self) -> str:
        rollout = f", task {self.task}, rollout {self.k}" if self.task else ""
        return f"{self.kind} of env {self.env}{rollout}"


@dataclass(frozen=True)
class _Job:
    call: EnvCall
    work: Callable[[], Any]
    future: Future[Any]


class _Worker:
    """One thread, its jobs in order, and the environments it has set up."""

    here = threading.local()
    """`here.worker` is the worker whose thread asks."""

    def __init__(self, number: int, watchdog: Watchdog, finished: Callable[[EnvCall], None]) -> None:
        self.number = number
        self.host: Host | None = None
        """The process where its environments are, if they are not here."""
        self.jobs: SimpleQueue[Sequence[_Job]] = SimpleQueue()
        self.ready: dict[str, Env] = {}
        self.setting_up = False
        self.under_way: tuple[_Job, Call] | None = None
        self._watchdog, self._finished = watchdog, finished
        self._batch: deque[_Job] = deque()
        self._abandoned = False
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, name="k2rl-env", daemon=True)
        self.thread.start()

    def take_jobs(self) -> list[_Job]:
        """The jobs that have not begun, taken away from it."""
        taken = []
        with suppress(IndexError):
            while True:
                taken.append(self._batch.popleft())
        with suppress(Empty):
            while True:
                taken += self.jobs.get_nowait()
        return taken

    def abandon(self, after_s: float) -> tuple[_Job, str] | None:
        """If its call takes longer than that, end the worker: the job, failed as stuck, and where it is."""
        with self._lock:
            if self.under_way is None or self.setting_up or self.under_way[1].seconds < after_s:
                return None
            job, call = self.under_way
            self._abandoned = True
            place, call.what = call.place(), ""
            # Ends a Python loop that does not end; what blocks in a system call notices when it returns.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(call.thread), ctypes.py_object(SystemExit))
            job.future.set_exception(StuckError(f"{job.call.kind} did not return within {after_s:g} s: {place}"))
            return job, place

    def _run(self) -> None:
        self.here.worker = self
        while (job := self._next()) is not None:
            with self._watchdog.watching(f"the {job.call}", job.call.env) as call:
                self.under_way = job, call
                try:
                    settle = partial(job.future.set_result, job.work())
                except BaseException as error:  # what it means is for whoever reads the future to say
                    settle = partial(job.future.set_exception, error)
            with self._lock:
                if self._abandoned:
                    return
                self.under_way = None
                self._finished(job.call)
                settle()

    def _next(self) -> _Job | None:
        """The next job; None where a batch without any says that it is over."""
        while True:
            with suppress(IndexError):
                return self._batch.popleft()
            batch = self.jobs.get()
            if not batch:
                return None
            self._batch.extend(batch)


class EnvPool:
    """The recipe's environments and the threads that step them.

    `templates` has one instance of each for the loop's own thread, never set up: it makes tasks and knows gold. Without
    workers that is all there is. `left_out` says why an optional environment is missing.
    `generations` counts the threads each worker has had: an environment made on an earlier one is lost with it.

    Args:
        start: makes the process of the n-th worker's environments; None for environments in this one.

    Raises:
        UserError: an environment can't be made or set up, or none is left.
    """

    def __init__(
        self,
        specs: Mapping[str, EnvSpec],
        workers: int,
        run: RunConfig | None = None,
        start: Callable[[int], Host] | None = None,
    ) -> None:
        self.specs, self.run, self._start = specs, run or RunConfig(), start
        self.templates: dict[str, Env] = {}
        self.left_out: dict[str, str] = {}
        self.watchdog = Watchdog(self.run.patience_s, self.run.stuck_s)
        self.generations = [0] * workers
        self._recent: dict[tuple[str, str], deque[str | None]] = {}
        self._workers = [self._worker(n) for n in range(workers)]
        try:
            for name, spec in specs.items():
                self._add(name, spec)
            if not self.templates:
                raise UserError(f"no environment is left: {'; '.join(f'{n}: {r}' for n, r in self.left_out.items())}")
        except BaseException:
            self.close()
            raise

    def _add(self, name: str, spec: EnvSpec) -> None:
        """Make an environment and set it up on a worker, so that what can't work is known before a run begins."""
        try:
            with self.watchdog.watching(f"the constructor of env {name}"):
                template = plugins.make_env(spec.id, spec.args)
            with users_code(f"setup() of env {name}"):
                if self._workers:
                    self.submit(0, (EnvCall("setup", name), lambda: self.spawn(name)))[0].result()
        except UnavailableError as error:
            if not spec.optional:
                raise UnavailableError(f"env {name}: {error}; or leave it out: envs.{name}.optional=true") from None
            self.left_out[name] = str(error)
            console.print(f"env {name} is left out: {error}", markup=False, soft_wrap=True)
        else:
            self.templates[name] = template

    def _worker(self, number: int) -> _Worker:
        return _Worker(number, self.watchdog, lambda call: self._outcomes(call).append(None))

    @property
    def workers(self) -> int:
        return len(self._workers)

    def submit(self, worker: int, *calls: tuple[EnvCall, Callable[[], T]]) -> list[Future[T]]:
        """Run calls on a worker, one after the other, after those submitted before: a future each."""
        jobs = [_Job(call, work, Future()) for call, work in calls]
        if jobs:
            self._workers[worker].jobs.put(jobs)
        return [job.future for job in jobs]

    def wait(self, *calls: Future[Any]) -> None:
        """Return once all are settled, if need be by giving up on what they wait for. Raises as `give_up` does."""
        while futures.wait(calls, timeout=min(0.5, self.run.stuck_s / 4)).not_done:
            self.give_up()

    def give_up(self) -> None:
        """Abandon the workers whose call has taken longer than `run.stuck_s`: its future then raises `StuckError`.

        Raises:
            RunError: too large a share of an environment's latest calls got stuck.
        """
        for n, worker in enumerate(self._workers):
            stuck = worker.abandon(self.run.stuck_s)
            if stuck is None:
                continue
            job, place = stuck
            fresh = self._workers[n] = self._worker(n)
            self.generations[n] += 1
            if worker.host is not None:
                worker.host.close(at_once=True)
            if later := worker.take_jobs():
                fresh.jobs.put(later)
            console.print(
                f"gave up on the {job.call} after run.stuck_s={self.run.stuck_s:g} s: {place}; a new thread goes on",
                markup=False,
                soft_wrap=True,
            )
            self._outcomes(job.call).append(job.call.task)
            self._check_stuck(job.call, place)

    def spawn(self, name: str) -> Env:
        """An instance for one rollout. Call it on a worker."""
        worker: _Worker = _Worker.here.worker
        if name not in worker.ready:
            worker.setting_up = True  # It may load what takes longer than any call.
            try:
                with self.watchdog.watching(f"setup() of env {name}"):
                    env = self._made(name, worker)
                    env.setup()
                worker.ready[name] = env
            finally:
                if worker.under_way:
                    worker.under_way[1].touch()
                worker.setting_up = False
        return worker.ready[name].spawn()

    def _made(self, name: str, worker: _Worker) -> Env:
        """An environment of a worker's, here or in its process."""
        if self._start is None:
            return plugins.make_env(self.specs[name].id, self.specs[name].args)
        if worker.host is None:
            worker.host = self._start(worker.number)

        host = worker.host

        def lost() -> None:
            """All that it had is gone with the process: it begins anew, and episodes are replayed."""
            if worker.host is host:
                host.close(at_once=True)
                worker.host, worker.ready = None, {}
                self.generations[worker.number] += 1

        return RemoteEnv(host, name, lost)

    def close(self) -> None:
        """Let each worker close what it set up, and end; one that takes too long is left behind."""
        closings = []
        for n, worker in enumerate(self._workers):
            worker.take_jobs()  # Nobody waits for what has not begun.
            for name in list(worker.ready):
                closings += self.submit(n, (EnvCall("close", name), worker.ready[name].close))
            worker.jobs.put(())
        until = time.monotonic() + _CLOSE_S
        for worker in self._workers:
            worker.thread.join(max(0.0, until - time.monotonic()))
        for closing in closings:
            if closing.done() and (error := closing.exception()):
                console.print(f"closing an environment failed: {type(error).__name__}: {error}", markup=False)
        self.watchdog.close()
        for worker in self._workers:
            if worker.host is not None:
                worker.host.close(at_once=worker.thread.is_alive())

    def _outcomes(self, call: EnvCall) -> deque[str | None]:
        """Of an environment's latest calls of a kind: the task where it got stuck, None where it returned."""
        return self._recent.setdefault((call.env, call.kind), deque(maxlen=_RECENT))

    def _check_stuck(self, call: EnvCall, place: str) -> None:
        recent, share = list(self._outcomes(call)), self.run.max_failure_rate
        tasks = [task for task in recent if task is not None]
        # One task among others that hangs is its own affair: it costs its own group.
        alone = len(set(tasks)) == 1 and None in recent
        if len(tasks) >= _LEAST_STUCK and len(tasks) > share * len(recent) and not alone:
            raise RunError(
                f"env {call.env}: {len(tasks)} of its last {len(recent)} calls of {call.kind} did not return within "
                f"run.stuck_s={self.run.stuck_s:g} seconds, a larger share than run.max_failure_rate={share:g}; the "
                f"last one, {call}, is at {place}: give it a time limit there, or raise run.stuck_s"
            )
