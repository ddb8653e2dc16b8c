"""How fast verdicts are: programs in full isolation against a fresh plain interpreter each, math against math-verify.

    python benchmarks/verdicts.py [--programs 200] [--rounds 5] [--mbpp FILE] [--json FILE]

Both sides run in turn in this process's tree, one program per core at a time. `calls`: one jail, values compared
outside (assert f(literals) == literal). `scripts`: two jails with remote calls between them (everything else). The
plain side starts an interpreter per program and runs the same asserts in it, without any protection. For math see
`verdicts_math.py`, which this runs too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from k2rl_envs.code_env import CodeEnv
from k2rl_rewards.program_tests import program_tests
from verdicts_math import math_verdicts, show

from k2rl.protocols import CallTest, ProgramTest, ScriptTest
from k2rl.sandbox.local import LocalSandbox

SLOW = {123}
"""Rows of MBPP whose reference computes for seconds: on both sides, they would be all that is measured."""
Run = Callable[["Case"], None]


@dataclass(frozen=True)
class Case:
    """A right program with its tests, and the same as one plain source."""

    program: str
    tests: tuple[ProgramTest, ...]
    source: str


def generated(count: int, scripts: bool) -> list[Case]:
    """Gold programs of the quickstart's kind of tasks."""
    env = CodeEnv(level=[1, 2, 3], styles={"direct": 1.0})
    cases = []
    for task in islice(env.tasks("test", 0), count):
        fn = str(task.reference["fn"])
        asserts = [f"assert {fn}({', '.join(map(repr, args))}) == {out!r}" for args, out in task.reference["cases"]]
        gold = env.gold(task)
        assert gold is not None
        cases.append(_case(gold, asserts, "", scripts, fn))
    return cases


def mbpp(path: Path, count: int, scripts: bool) -> list[Case]:
    """MBPP's reference programs with their own tests."""
    cases = []
    with path.open(encoding="utf-8") as file:
        for row in islice((r for r in map(json.loads, file) if r["task_id"] not in SLOW), count):
            cases.append(_case(row["code"], row["test_list"], row["test_setup_code"], scripts))
    return cases


def _case(program: str, asserts: Sequence[str], setup: str, scripts: bool, fn: str | None = None) -> Case:
    made = program_tests({"tests": list(asserts), "setup": setup})
    names = (fn,) if fn else made.names
    tests: tuple[ProgramTest, ...] = made.tests
    if scripts:
        tests = tuple(ScriptTest(f"{setup}\n{line}", names) for line in asserts)
    return Case(program, tests, "\n".join([program, setup, *asserts]))


def measure(cases: Sequence[Case], run: Run, workers: int) -> tuple[float, list[float]]:
    """Programs per second, and the milliseconds each took."""

    def timed(case: Case) -> float:
        started = time.perf_counter()
        run(case)
        return 1000 * (time.perf_counter() - started)

    with ThreadPoolExecutor(workers) as pool:
        started = time.perf_counter()
        took = list(pool.map(timed, cases))
        return len(cases) / (time.perf_counter() - started), took


def compare(cases: Sequence[Case], sandbox: LocalSandbox, rounds: int) -> dict[str, Any]:
    """Rates and latencies of both sides, and the ratio of their rates: the median over rounds."""

    def jailed(case: Case) -> None:
        outcome = sandbox.run(case.program, case.tests)
        if outcome.verdict.score != 1.0:
            raise SystemExit(f"a right program was refused: {outcome.verdict}\n{case.source}")

    def plain(case: Case) -> None:
        subprocess.run([sys.executable, "-I", "-c", case.source], check=True, stdout=subprocess.DEVNULL)

    rates: dict[str, list[float]] = {"jailed": [], "plain": []}
    took: dict[str, list[float]] = {"jailed": [], "plain": []}
    for _ in range(rounds):
        for side, run in (("jailed", jailed), ("plain", plain)):
            rate, times = measure(cases, run, sandbox.workers)
            rates[side].append(rate)
            took[side] += times
    ratios = [a / b for a, b in zip(rates["jailed"], rates["plain"], strict=True)]
    report: dict[str, Any] = {"ratio": statistics.median(ratios), "ratios": ratios, "programs": len(cases)}
    for side in rates:
        cuts = statistics.quantiles(took[side], n=100)
        report |= {
            f"{side}_per_second": statistics.median(rates[side]),
            f"{side}_p50_ms": cuts[49],
            f"{side}_p99_ms": cuts[98],
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mbpp", type=Path, help="mbpp.jsonl")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sandbox = LocalSandbox()
    workloads = {"generated, calls": generated(args.programs, scripts=False)}
    workloads["generated, scripts"] = generated(args.programs, scripts=True)
    if args.mbpp:
        workloads["MBPP"] = mbpp(args.mbpp, args.programs, scripts=False)
        workloads["MBPP, scripts"] = mbpp(args.mbpp, args.programs, scripts=True)
    report: dict[str, Any] = {}
    for name, cases in workloads.items():
        report[name] = found = compare(cases, sandbox, args.rounds)
        calls = sum(all(isinstance(t, CallTest) for t in case.tests) for case in cases) / len(cases)
        print(f"ratio: {found['ratio']:.2f} (programs/s, {name}, level {sandbox.level} over a fresh plain interpreter)")
        print(
            f"  {found['jailed_per_second']:.0f} programs/s, p50 {found['jailed_p50_ms']:.1f} ms, "
            f"p99 {found['jailed_p99_ms']:.1f} ms; plain {found['plain_per_second']:.0f}/s, "
            f"p99 {found['plain_p99_ms']:.1f} ms; {100 * calls:.0f} % of the programs need one jail only",
            flush=True,
        )
    sandbox.close()
    math = math_verdicts(args.rounds, pairs=80)
    show(math)
    if args.json:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        facts = {
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}",
            "python": platform.python_version(),
            "level": sandbox.level,
            "load_average": os.getloadavg(),
            "commit": commit,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"schema_version": 1, **facts, "programs": report, "math": math}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
