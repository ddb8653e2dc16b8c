"""Untrusted programs run on this machine, in jails; their verdicts are found outside."""

from __future__ import annotations

import os
import platform
import queue
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from k2rl.errors import UnavailableError
from k2rl.protocols import DEFAULT_LIMITS, CallTest, Limits, Outcome, ProgramTest
from k2rl.sandbox import canaries
from k2rl.sandbox.jobs import CallsJob, Finding, Job, exhausted, jobs_of, printable, verdict_of
from k2rl.sandbox.processes import Child, Zygote, ZygoteError
from k2rl.sandbox.zygote import FAILED
from k2rl.types import Status, Verdict

LEVELS = ("full", "landlock")

_SLOW_RUNS = 3
"""After so many runs of a program that ended at a limit, its other tests count as failed."""
_ELSEWHERE = "run programs elsewhere (`k2rl sandbox serve` there, args.sandbox=http://host:port here)"
_CONTROL = ("def f(x):\n    return x + 1", (CallTest("f", "(1,)", "2"),))


class LocalSandbox:
    """Jails on this machine.

    Calls are compared outside the jail, by canonical bytes, in a shuffled order; test scripts run in a second jail and
    reach the program by remote calls. A program never shares a process with an expected value.

    Args:
        level: `full`, `landlock` or `unsafe` (see `jail.py`); None takes the best of the first two that stops every
            attack of `canaries.py`.
        workers: programs at a time; default the number of cores.

    Raises:
        UnavailableError: no such level can be had on this machine; says why.
    """

    def __init__(self, level: str | None = None, workers: int | None = None) -> None:
        self.level, first = _best_level(level)
        self.workers = workers or len(os.sched_getaffinity(0))
        self.restarts = 0
        self._fill(first)
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    def run(self, program: str, tests: Sequence[ProgramTest], limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """See `protocols.Sandbox`.

        Raises:
            ValueError: no tests, or an expected value that is no literal.
        """
        jobs = jobs_of(program, tests)
        started = time.perf_counter()
        findings: Sequence[Finding] = ()
        cpu_s = 0.0
        try:
            with self._slot() as slot:
                findings, cpu_s = self._attributed(slot, jobs, limits)
            verdict = verdict_of(findings)
        except _ProgramError as error:
            findings = [Finding(False)] * len(tests)
            verdict = Verdict.malformed(str(error))
        except (_JailError, _MachineError) as error:
            verdict = Verdict.failure(Status.INFRA_ERROR, str(error))
        return Outcome(verdict, tuple(f.passed for f in findings), cpu_s, time.perf_counter() - started)

    def close(self) -> None:
        """End the fork servers, each when its program has ended; a later run starts others."""
        with self._closing:
            zygotes = [self._idle.get() for _ in range(self.workers)]
            for zygote in zygotes:
                if zygote is not None:
                    zygote.close()
                self._idle.put(None)

    def _fill(self, first: Zygote | None = None) -> None:
        self._closing = threading.Lock()  # two that close must not wait for what the other holds
        self._idle: queue.LifoQueue[Zygote | None] = queue.LifoQueue()
        for zygote in [None] * (self.workers - 1) + [first]:
            self._idle.put(zygote)

    def _forget(self) -> None:
        """In a forked process: the parent's jails are not ours."""
        for zygote in self._idle.queue:
            if zygote is not None:
                zygote.forget()
        self._fill()

    @contextmanager
    def _slot(self) -> Iterator[_Slot]:
        slot = _Slot(self.level, self._idle.get())
        try:
            yield slot
        finally:
            self.restarts += slot.restarts
            self._idle.put(slot.zygote)

    def _attributed(self, slot: _Slot, jobs: Sequence[Job], limits: Limits) -> tuple[list[Finding], float]:
        """The findings and the processor time used; a failure is put down to whoever causes it.

        Raises:
            _ProgramError: the jail fails again and again on this program, but not on a control program.
            _JailError, _MachineError: it fails on that too, or no program can be started at all.
        """
        try:
            return self._attempt(slot, jobs, limits)
        except _JailError as first:
            try:
                self._attempt(slot, jobs_of(*_CONTROL), limits)
            except _JailError as error:
                raise _JailError(f"the sandbox fails, also on a control program: {error}") from None
            try:
                return self._attempt(slot, jobs, limits)
            except _JailError:
                raise _ProgramError(f"on this program the sandbox fails, twice: {first}") from None

    def _attempt(self, slot: _Slot, jobs: Sequence[Job], limits: Limits) -> tuple[list[Finding], float]:
        findings: dict[int, Finding] = {}
        cpu_s = 0.0
        slow = 0
        for job in jobs:
            if slow == _SLOW_RUNS:  # hundreds of tests would keep a looping program busy for minutes
                findings |= job.failed(f"not run, for {slow} others ran out of their limits")
                continue
            children = slot.run(job, limits)
            judged = job.judge(children, limits)
            findings |= judged
            cpu_s += sum(c.cpu_s for c in children)
            failed = not all(f.passed for f in judged.values())
            slow += failed and any(exhausted(c, limits) for c in children)
        return [findings[i] for i in sorted(findings)], cpu_s


class _JailError(Exception):
    """The jail failed on a program; the message says how."""


class _ProgramError(Exception):
    """And that is the program's doing."""


class _MachineError(Exception):
    """No program can be started at present: no memory, no file descriptors."""


@dataclass
class _Slot:
    """A place where one program runs at a time: a zygote, or none yet."""

    level: str
    zygote: Zygote | None
    restarts: int = 0

    def run(self, job: Job, limits: Limits) -> list[Child]:
        """The job's children, ended.

        Raises:
            _JailError: the zygote died or could not jail the child.
            _MachineError: there is no zygote to be had, or no pipes.
        """
        try:
            self.zygote = self.zygote or Zygote(self.level)
            with ExitStack() as opened:
                children = job.children(opened)
                opened.pop_all()
        except (ZygoteError, OSError) as error:
            raise _MachineError(f"the sandbox can't start a program: {error}") from None
        try:
            self.zygote.run(children, limits)
        except BaseException as error:  # an interrupt too: the next program must not meet what this one left there
            self.zygote.close()
            self.zygote = None
            self.restarts += 1
            if not isinstance(error, ZygoteError):
                raise
            raise _JailError(str(error)) from None
        finally:
            for child in children:
                for fd in child.reads:
                    os.close(fd)
        for child in children:
            said = b"".join(child.output.values())
            if child.status == FAILED and said[:1] in (b"", b"j"):
                raise _JailError(printable(said[5:]) or "a child could not be jailed")
        return children


def _best_level(wanted: str | None) -> tuple[str, Zygote]:
    """A level whose jail stops every canary, and a first fork server at it."""
    if wanted not in (None, "unsafe", *LEVELS):
        raise ValueError(f"no sandbox level {wanted!r}: full, landlock, unsafe")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise UnavailableError(
            "no jail for untrusted programs on this machine: it needs Linux on x86-64; " + _ELSEWHERE
        )
    reasons = []
    for level in LEVELS if wanted is None else (wanted,):
        zygote, reason = try_level(level)
        if zygote is not None:
            return level, zygote
        reasons.append(f"{level}: {reason}")
    raise UnavailableError(
        f"no jail for untrusted programs on this machine ({'; '.join(reasons)}): {_ELSEWHERE}, or accept the risk with "
        "args.sandbox=unsafe"
    )


def report() -> dict[str, str]:
    """Level -> why this machine does not have it; empty where it does. The first it has is what `local` takes."""
    found = {}
    for level in LEVELS:
        zygote, found[level] = try_level(level)
        if zygote is not None:
            zygote.close()
            break
    return found


def try_level(level: str) -> tuple[Zygote | None, str]:
    """A fork server at this level, or why there is none."""
    try:
        zygote = Zygote(level)
    except (ZygoteError, OSError) as error:
        return None, str(error)
    slot = _Slot(level, zygote)
    for canary in canaries.of(level):
        job = CallsJob(canary.program, {0: CallTest("attack", "()", repr(canaries.STOPPED))})
        try:
            children = slot.run(job, canaries.LIMITS)
        except (_JailError, _MachineError) as error:
            return None, f"{canary.name}: {error}"
        finding = job.judge(children, canaries.LIMITS)[0]
        if not finding.passed:
            zygote.close()
            return None, f"the probe '{canary.name}' got through ({finding.detail})"
    return zygote, ""
