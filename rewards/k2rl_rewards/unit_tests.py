"""Whether a program passes its tests, found in a sandbox: see `program_tests.py` for the forms of tests and
`program_text.py` for which part of a response is the program."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache

from k2rl.errors import UserError, did_you_mean
from k2rl.protocols import Limits, Sandbox
from k2rl.sandbox import connect
from k2rl.types import Status, Verdict
from k2rl_rewards.program_tests import ProgramTests, program_tests
from k2rl_rewards.program_text import NoProgramError, defines, program_text


class UnitTests:
    """The reward of a program.

    Malformed: no program in the response, one too long, or one that does not parse (which the jail finds out: parsing
    hostile text is no work for a trainer). Wrong: a test fails, or the program runs out of its limits.

    Args:
        sandbox: where programs run: "local", "http://host:port", …; see `k2rl.sandbox.connect`.
        share: score the share of the tests that pass, instead of all or nothing.
        limits: cpu_s, wall_s, memory_mb, output_bytes of a program, where they differ from the defaults.

    Raises:
        UserError: limits or a share that are none, or (when called) a reference without usable tests.
        UnavailableError: when first called: no jail can be had on this machine.
    """

    def __init__(self, sandbox: str = "local", share: bool = False, limits: Mapping[str, float] | None = None) -> None:
        if not isinstance(share, bool):
            raise UserError(f"share must be true or false, got {share!r}")
        self.place, self.share, self.limits = sandbox, share, _limits(limits or {})

    @property
    def sandbox(self) -> Sandbox:
        """Shared by all that ask for the same place; started when first needed."""
        return connect(self.place)

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        tests = _translated(json.dumps(dict(reference)))
        try:
            program = program_text(response, tests.names)
        except NoProgramError as error:
            return Verdict.malformed(str(error))
        outcome = self.sandbox.run(_completed(program, tests), tests.tests, self.limits)
        if self.share and outcome.verdict.status is Status.WRONG and outcome.passed:
            return Verdict.of(sum(outcome.passed) / len(outcome.passed), outcome.verdict.detail)
        return outcome.verdict


@lru_cache(maxsize=256)
def _translated(reference: str) -> ProgramTests:
    """A task's tests, translated once for all its responses."""
    return program_tests(json.loads(reference))


def _completed(program: str, tests: ProgramTests) -> str:
    """The program with what belongs before it; a response that only goes on from the prompt is put after that."""
    if tests.beginning and not any(defines(program, name) for name in tests.names):
        return f"{tests.beginning.rstrip()}\n{program}"
    if not tests.before.strip():
        return program
    future = "".join(_FUTURE.findall(program))
    return f"{future}{tests.before}\n{_FUTURE.sub('', program)}"


# These have to be a file's first statements.
_FUTURE = re.compile(r"^from __future__ import [\w, ]+\n", re.MULTILINE)


def _limits(given: Mapping[str, float]) -> Limits:
    known = {f.name: f.type for f in fields(Limits)}
    if not isinstance(given, Mapping):
        raise UserError(f"limits must map names to numbers, got {given!r}: allowed are {', '.join(known)}")
    for name, value in given.items():
        if name not in known:
            raise UserError(f"unknown limit {name!r}{did_you_mean(name, known)}: allowed are {', '.join(known)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"limits.{name} must be a positive number, got {value!r}")
    return Limits(**{n: int(v) if known[n] == "int" else float(v) for n, v in given.items()})  # type: ignore[arg-type]
