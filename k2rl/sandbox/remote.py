"""Sandboxes on other machines: `k2rl sandbox serve`, and services of SandboxFusion's HTTP form.

What goes wrong on the way is an `infra_error`, never a score: a program can't cause it, and is not paid for it.
"""

from __future__ import annotations

import base64
import http.client
import inspect
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

from k2rl.errors import UserError
from k2rl.protocols import DEFAULT_LIMITS, CallTest, Limits, Outcome, ProgramTest, StdioTest
from k2rl.sandbox import canonical
from k2rl.sandbox.compare import same_output
from k2rl.sandbox.jobs import CallsJob, Finding, frames_of, verdict_of
from k2rl.sandbox.wire import job_to_json, outcome_from_json
from k2rl.types import Status, Verdict

_RETRIES, _PAUSE_S, _QUEUE_S = 3, 0.5, 120.0


class _HttpError(Exception):
    pass


class RemoteSandbox:
    """`k2rl sandbox serve` at an address.

    Raises:
        UserError: nobody answers there, or not as a k2rl sandbox does.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self.level = str(_ask(f"{self.url}/health", None, 10.0)["level"])
        except (_HttpError, KeyError) as error:
            raise UserError(f"no k2rl sandbox at {self.url}: {error}; start one: k2rl sandbox serve") from None

    def run(self, program: str, tests: Sequence[ProgramTest], limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """See `protocols.Sandbox`."""
        started = time.perf_counter()
        wait = limits.wall_s * (len(tests) + 2) + _QUEUE_S
        try:
            return outcome_from_json(_ask(f"{self.url}/run", job_to_json(program, tests, limits), wait))
        except UserError:
            raise
        except (_HttpError, LookupError, TypeError, ValueError) as error:
            return _failed(f"the sandbox at {self.url}: {error}", started)

    def close(self) -> None:
        """Nothing of it is ours."""


class FusionSandbox:
    """A service of SandboxFusion's form (`POST /run_code`).

    It has one process per program, so test scripts that would need a second one are refused; the values of calls are
    compared here, as everywhere.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            _run_code(self.url, "print(1)", "", DEFAULT_LIMITS)
        except _HttpError as error:
            raise UserError(f"no SandboxFusion service at {self.url}: {error}") from None

    def run(self, program: str, tests: Sequence[ProgramTest], limits: Limits = DEFAULT_LIMITS) -> Outcome:
        """See `protocols.Sandbox`."""
        started = time.perf_counter()
        if not tests:
            raise ValueError("a program without tests has no verdict")
        calls = {i: t for i, t in enumerate(tests) if isinstance(t, CallTest)}
        stdio = {i: t for i, t in enumerate(tests) if isinstance(t, StdioTest)}
        if len(calls) + len(stdio) < len(tests):
            detail = "SandboxFusion has no second jail for test scripts: use assert f(literals) == literal"
            return Outcome(Verdict.failure(Status.VERIFIER_ERROR, detail), (), 0.0, 0.0)
        findings: dict[int, Finding] = {}
        try:
            if calls:
                findings |= self._calls(program, calls, limits)
            for i, test in stdio.items():
                ran = _run_code(self.url, program, test.stdin, limits)
                findings[i] = _stdio_finding(ran, test)
        except _HttpError as error:
            return _failed(f"SandboxFusion at {self.url}: {error}", started)
        ordered = [findings[i] for i in sorted(findings)]
        wall_s = time.perf_counter() - started
        return Outcome(verdict_of(ordered), tuple(f.passed for f in ordered), 0.0, wall_s)

    def close(self) -> None:
        """Nothing of it is ours."""

    def _calls(self, program: str, tests: dict[int, CallTest], limits: Limits) -> dict[int, Finding]:
        job = CallsJob(program, tests)
        payload = base64.b64encode(json.dumps(job.job).encode()).decode()
        ran = _run_code(self.url, f"{inspect.getsource(canonical)}\n{_DRIVER}\nmain({payload!r})", "", limits)
        lines = str(ran.get("stdout") or "").split("\n")
        try:
            data = base64.b64decode(next((line for line in reversed(lines) if line), ""), validate=True)
        except ValueError:
            data = b""
        clean = ran.get("status") == "Finished" and ran.get("return_code") == 0
        ended = "not done in time" if ran.get("status") == "TimeLimitExceeded" else "the program ended itself"
        return job.findings(frames_of(data), clean, ended)


# Runs in the service, after the source of `canonical.py`. The program's own output goes to stderr; the frames leave as
# one line of base64.
_DRIVER = """
def main(payload):
    import ast, base64, json, os, sys, types
    job = json.loads(base64.b64decode(payload))
    out = os.dup(1)
    os.dup2(2, 1)
    frames = []
    def frame(mark, content):
        frames.append(mark + len(content).to_bytes(4, "big") + content)
    def said(error):
        return (type(error).__name__ + ": " + str(error))[:300].encode("utf-8", "replace")
    arguments = [ast.literal_eval(args) for _, args in job["calls"]]
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(job["program"], "<program>", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        frame(b"s" if isinstance(error, SyntaxError) else b"x", said(error))
    else:
        for (name, _), args in zip(job["calls"], arguments):
            try:
                frame(b"v", canonical(module.__dict__[name](*args)))
            except BaseException as error:
                frame(b"e", said(error))
    os.write(out, base64.b64encode(b"".join(frames)) + b"\\n")
"""


def _stdio_finding(ran: Mapping[str, Any], test: StdioTest) -> Finding:
    if ran.get("status") == "TimeLimitExceeded":
        return Finding(False, "not done in time")
    if ran.get("return_code") != 0:
        last = str(ran.get("stderr") or "").strip().rpartition("\n")[2]
        return Finding(False, f"exit code {ran.get('return_code')}: {last[:200]}", last.startswith("SyntaxError"))
    printed = str(ran.get("stdout") or "")
    if same_output(printed.encode("utf-8", "replace"), test.stdout.encode("utf-8", "replace")):
        return Finding(True)
    return Finding(False, f"printed {printed[:100]!r}")


def _run_code(url: str, code: str, stdin: str, limits: Limits) -> Mapping[str, Any]:
    """The service's `run_result`.

    Raises:
        _HttpError: no answer, or the service says that it failed.
    """
    request = {
        "code": code,
        "stdin": stdin,
        "language": "python",
        "run_timeout": limits.wall_s,
        "memory_limit_MB": limits.memory_mb,
    }
    reply = _ask(f"{url}/run_code", request, limits.wall_s + _QUEUE_S)
    ran = reply.get("run_result")
    if reply.get("status") == "SandboxError" or not isinstance(ran, Mapping):
        raise _HttpError(f"it failed: {str(reply.get('message'))[:200]}")
    return ran


def _failed(detail: str, started: float) -> Outcome:
    return Outcome(Verdict.failure(Status.INFRA_ERROR, detail), (), 0.0, time.perf_counter() - started)


def _ask(url: str, data: Mapping[str, Any] | None, timeout_s: float) -> dict[str, Any]:
    """The JSON object that a GET (no data) or POST of JSON answers; connections that fail are tried again.

    Raises:
        _HttpError: no answer, or one that is none.
        UserError: the token is wrong, or the job is (400).
    """
    headers = {"Content-Type": "application/json"}
    token = os.environ.get("K2RL_SANDBOX_TOKEN")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    body = None if data is None else json.dumps(data).encode()
    problem = ""
    for attempt in range(_RETRIES):
        if attempt:
            time.sleep(_PAUSE_S * 2**attempt)
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=timeout_s) as reply:
                answer = json.load(reply)
        except urllib.error.HTTPError as error:
            text = error.read(1000).decode("utf-8", "replace")
            if error.code in (400, 401):
                raise UserError(f"{url} refuses: {text}") from None
            problem = f"HTTP {error.code}: {text[:200]}"
            continue
        except (OSError, ValueError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
            continue
        if isinstance(answer, dict):
            return answer
        problem = "the answer is no JSON object"
    raise _HttpError(problem)
