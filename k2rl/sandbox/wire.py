"""Programs, tests and outcomes as JSON: the form of `k2rl sandbox serve`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from k2rl.protocols import CallTest, Limits, Outcome, ProgramTest, ScriptTest, StdioTest
from k2rl.types import Status, Verdict


def job_to_json(program: str, tests: Sequence[ProgramTest], limits: Limits) -> dict[str, Any]:
    return {"program": program, "tests": [asdict(t) for t in tests], "limits": asdict(limits)}


def job_from_json(data: Any) -> tuple[str, list[ProgramTest], Limits]:
    """Raises `ValueError` naming the field that is wrong."""
    if not isinstance(data, Mapping) or not isinstance(data.get("program"), str):
        raise ValueError("a job is an object with program, tests and limits; program is text")
    tests, limits = data.get("tests"), data.get("limits", {})
    if not isinstance(tests, list) or not tests:
        raise ValueError("tests must be a list of at least one test")
    if not isinstance(limits, Mapping):
        raise ValueError("limits must be an object")
    try:
        given = Limits(**limits)
    except TypeError:
        raise ValueError(f"limits takes {', '.join(asdict(Limits()))}, got {', '.join(map(str, limits))}") from None
    for name, value in asdict(given).items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"limits.{name} must be a number above 0, got {value!r}")
    return data["program"], [_test(i, t) for i, t in enumerate(tests)], given


def _test(index: int, data: Any) -> ProgramTest:
    fields = set(data) if isinstance(data, Mapping) else set()
    if fields == {"fn", "args", "expected"} and all(isinstance(v, str) for v in data.values()):
        return CallTest(**data)
    if fields == {"stdin", "stdout"} and all(isinstance(v, str) for v in data.values()):
        return StdioTest(**data)
    if fields in ({"source"}, {"source", "fns"}) and isinstance(data["source"], str):
        fns = data.get("fns", [])
        if isinstance(fns, list) and all(isinstance(f, str) for f in fns):
            return ScriptTest(data["source"], tuple(fns))
    raise ValueError(f"tests[{index}] is no test: give fn, args, expected; or stdin, stdout; or source, fns (all text)")


def outcome_to_json(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome) | {"verdict": outcome.verdict.to_json()}


def outcome_from_json(data: Mapping[str, Any]) -> Outcome:
    """Raises `LookupError`, `TypeError` or `ValueError` where it is none."""
    verdict = data["verdict"]
    return Outcome(
        Verdict(Status(verdict["status"]), verdict["score"], str(verdict["detail"])),
        tuple(bool(p) for p in data["passed"]),
        float(data["cpu_s"]),
        float(data["wall_s"]),
    )
