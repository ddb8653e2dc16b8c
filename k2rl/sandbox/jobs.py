"""A program's tests as jobs for jails, and what a job's output says about each test.

All calls of a program are one job, all its test scripts one, each stdin/stdout test one. Everything here is on the
trusted side: it sees expected values, and of a program only bytes.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from k2rl.protocols import CallTest, Limits, ProgramTest, ScriptTest, StdioTest
from k2rl.sandbox.canonical import canonical
from k2rl.sandbox.compare import same_output
from k2rl.sandbox.processes import Child, file_of
from k2rl.types import Verdict


@dataclass(frozen=True)
class Finding:
    passed: bool
    detail: str = ""
    syntax: bool = False


def jobs_of(program: str, tests: Sequence[ProgramTest]) -> list[Job]:
    """The jobs that find out about all tests.

    Raises:
        ValueError: no tests, or an expected value or arguments that are no literal.
    """
    if not tests:
        raise ValueError("a program without tests has no verdict")
    calls = {i: t for i, t in enumerate(tests) if isinstance(t, CallTest)}
    scripts = {i: t for i, t in enumerate(tests) if isinstance(t, ScriptTest)}
    jobs: list[Job] = []
    if calls:
        jobs.append(CallsJob(program, calls))
    if scripts:
        jobs.append(ScriptsJob(program, scripts))
    return jobs + [StdioJob(program, i, t) for i, t in enumerate(tests) if isinstance(t, StdioTest)]


class _Tests:
    """What the jobs share: the numbers of their tests."""

    order: list[int]

    def failed(self, detail: str, syntax: bool = False) -> dict[int, Finding]:
        """All tests failed for the same reason."""
        return dict.fromkeys(self.order, Finding(False, detail, syntax))


class CallsJob(_Tests):
    """One jail; what each call returned leaves it as canonical bytes and is compared here."""

    def __init__(self, program: str, tests: dict[int, CallTest]) -> None:
        for test in tests.values():
            _canonical(test.expected)
            if not isinstance(ast.literal_eval(test.args), tuple):
                raise ValueError(f"args must be the source of a tuple, got {_short(test.args)}")
        self.tests = tests
        self.order = sorted(tests)
        # A program must not know the call it answers by its number. Keyed, so that its verdict is always the same.
        key = hashlib.blake2b(repr((program, tests)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        random.Random(key).shuffle(self.order)
        self.job = {"kind": "calls", "program": program, "calls": [(tests[i].fn, tests[i].args) for i in self.order]}

    def children(self, opened: ExitStack) -> list[Child]:
        read, write = _pipe(opened)
        return [Child([*_nulls(opened, 3), _job(opened, self.job), write], [read])]

    def judge(self, children: Sequence[Child], limits: Limits) -> dict[int, Finding]:
        (child,) = children
        (data,) = child.output.values()
        return self.findings(frames_of(bytes(data)), child.status == 0, _ending(child, limits))

    def findings(self, frames: list[tuple[bytes, bytes]] | None, clean: bool, ending: str) -> dict[int, Finding]:
        """What the frames say; `clean`: the process ended as it should, else `ending` tells why it did."""
        if frames is None and not clean:
            return self.failed(ending)
        if frames is None or len(frames) > len(self.order):
            return self.failed("the program wrote among its results")
        if frames and frames[0][0] in (b"x", b"s"):
            return self.failed(printable(frames[0][1]), frames[0][0] == b"s")
        found = {i: self._finding(self.tests[i], *frame) for i, frame in zip(self.order, frames, strict=False)}
        if clean and len(found) == len(self.order):
            return found
        # A program that ends early, or is ended, has answered nothing properly.
        return self.failed(ending) | {i: f for i, f in found.items() if not f.passed}

    def _finding(self, test: CallTest, mark: bytes, content: bytes) -> Finding:
        call = test.fn + _short(test.args).replace(",)", ")")
        if mark != b"v":
            return Finding(False, f"{call}: {printable(content)}")
        passed = content == _canonical(test.expected)
        return Finding(passed, "" if passed else f"{call} is not {_short(test.expected)}")


class StdioJob(_Tests):
    """One jail; its output is compared here."""

    def __init__(self, program: str, index: int, test: StdioTest) -> None:
        self.index, self.test, self.order = index, test, [index]
        self.job = {"kind": "script", "program": program}

    def children(self, opened: ExitStack) -> list[Child]:
        out, out_write = _pipe(opened)
        result, result_write = _pipe(opened)
        stdin = _file(opened, self.test.stdin.encode("utf-8", "surrogateescape"))
        return [Child([stdin, out_write, *_nulls(opened, 1), _job(opened, self.job), result_write], [out, result])]

    def judge(self, children: Sequence[Child], limits: Limits) -> dict[int, Finding]:
        (child,) = children
        printed, said = (bytes(data) for data in child.output.values())
        frames = frames_of(said) or []
        if child.status != 0:
            syntax = bool(frames) and frames[0][0] == b"s"
            return {self.index: Finding(False, printable(frames[0][1]) if frames else _ending(child, limits), syntax)}
        if same_output(printed, self.test.stdout.encode("utf-8", "surrogateescape")):
            return {self.index: Finding(True)}
        return {
            self.index: Finding(False, f"printed {printable(printed[:100])!r} on stdin {_short(self.test.stdin)!r}")
        }


class ScriptsJob(_Tests):
    """Two jails: the tests in one, the program in the other, a pipe each way between them."""

    def __init__(self, program: str, tests: dict[int, ScriptTest]) -> None:
        self.order = sorted(tests)
        fns = sorted({fn for t in tests.values() for fn in t.fns})
        self.tests_job = {"kind": "tests", "sources": [tests[i].source for i in self.order], "fns": fns}
        self.program_job = {"kind": "serve", "program": program}

    def children(self, opened: ExitStack) -> list[Child]:
        asks, ask = _pipe(opened)
        answers, answer = _pipe(opened)
        read, write = _pipe(opened)
        tests = Child([*_nulls(opened, 3), _job(opened, self.tests_job), write, answers, ask], [read])
        program = Child([*_nulls(opened, 3), _job(opened, self.program_job), answer, asks])
        return [tests, program]

    def judge(self, children: Sequence[Child], limits: Limits) -> dict[int, Finding]:
        tests, program = children
        (data,) = tests.output.values()
        frames = frames_of(bytes(data)) or []
        if frames and frames[0][0] == b"x":
            detail = printable(frames[0][1])
            return self.failed(detail, detail.startswith("SyntaxError"))
        ended = Finding(False, _ending(program if program.status else tests, limits))
        found = dict.fromkeys(self.order, ended)
        for i, (mark, content) in zip(self.order, frames, strict=False):
            found[i] = Finding(mark == b"p", printable(content))
        return found


Job = CallsJob | StdioJob | ScriptsJob


def verdict_of(findings: Sequence[Finding]) -> Verdict:
    failed = [f for f in findings if not f.passed]
    if not failed:
        return Verdict.of(True)
    if failed[0].syntax:
        return Verdict.malformed(failed[0].detail)
    return Verdict.of(False, f"{len(failed)} of {len(findings)} tests failed: {failed[0].detail}")


def exhausted(child: Child, limits: Limits) -> str:
    """The limit that a program ran into; empty if none."""
    if child.overflow:
        return f"more than {limits.output_bytes} bytes of output"
    if child.late:
        return f"not done after {limits.wall_s:g} s"
    # The clock of the limit also counts time that the host took away, the one of the usage does not.
    if child.cpu_s >= limits.cpu_s or (child.status == -9 and child.cpu_s > limits.cpu_s / 2):
        return f"more than {limits.cpu_s:g} s of processor time"
    return ""


def _ending(child: Child, limits: Limits) -> str:
    """Why a program that gave no result ended."""
    limit = exhausted(child, limits)
    if limit:
        return limit
    if child.status is not None and child.status < 0:
        return f"ended by signal {-child.status}"
    return f"the program ended itself (exit code {child.status})"


def frames_of(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """The frames in a child's result; None if it is ill-formed."""
    frames, at = [], 0
    while at < len(data):
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        if len(data) < end:
            return None
        frames.append((data[at : at + 1], data[at + 5 : end]))
        at = end
    return frames


# File descriptors of a job's children; `opened` closes them again if not all can be had.


def _pipe(opened: ExitStack) -> tuple[int, int]:
    read, write = os.pipe()
    opened.callback(os.close, read)
    opened.callback(os.close, write)
    return read, write


def _nulls(opened: ExitStack, number: int) -> list[int]:
    found = []
    for _ in range(number):
        found.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        opened.callback(os.close, found[-1])
    return found


def _file(opened: ExitStack, data: bytes) -> int:
    fd = file_of(data)
    opened.callback(os.close, fd)
    return fd


def _job(opened: ExitStack, job: dict[str, Any]) -> int:
    return _file(opened, json.dumps(job).encode())


def printable(data: bytes) -> str:
    """Words of a program, safe to print."""
    text = data.decode("utf-8", "replace")[:300]
    return "".join(c if c.isprintable() else " " for c in text)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


@lru_cache(4096)
def _canonical(literal: str) -> bytes:
    return canonical(ast.literal_eval(literal))
