"""Is an environment fit to train on? The probes behind `k2rl env check ID`, for pytest as well:

    from k2rl.envcheck import check_env

    def test_my_env():
        report = check_env(MyEnv())
        assert report.ok, str(report)

The environment runs in a process of its own (`worker.py`, seen through `subject.py`), so that a grader that hangs is
reported instead of waited for. `bench.py` plays episodes there, `probes.py` is the table of what is asked of them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium

from k2rl.envcheck.bench import Bench, InapplicableError
from k2rl.envcheck.probes import NO_GOLD, PROBES, Probe
from k2rl.envcheck.report import Finding, Flaw, Report
from k2rl.envcheck.subject import Subject, SubjectError, origin_of
from k2rl.envcheck.texts import NONSENSE
from k2rl.errors import UserError, did_you_mean
from k2rl.progress import live
from k2rl.types import Status

__all__ = ["PROBES", "Finding", "Flaw", "Report", "check_env"]


def check_env(
    env: gymnasium.Env[Any, Any] | str,
    *,
    args: Mapping[str, Any] | None = None,
    tasks: int = 24,
    seed: int = 0,
    model: str = "nano",
    deadline_s: float = 30.0,
    quiet: bool = True,
) -> Report:
    """Run all probes.

    Args:
        env: an environment, whose class stands at the top of a module, or its id as in a recipe.
        args: the arguments of an environment given by id.
        tasks: how many tasks are probed, two thirds of them from the train split.
        seed: the seed of the tasks.
        model: whose tokens count for the budget: nano, a transformers folder or a hub id.
        deadline_s: seconds after which a call of the environment is taken to hang.
        quiet: show no progress.

    Raises:
        UserError: the environment can't be made, its tasks raise, or it waives a probe that does not exist.
    """
    if tasks < 1 or not deadline_s > 0:
        raise UserError(f"tasks is {tasks} and the deadline {deadline_s:g} s: give one task and some time at least")
    start = time.monotonic()
    subject = Subject(origin_of(env, args), hash_seed=0)
    try:
        name = env if isinstance(env, str) else str(subject.about["name"])
        waived = _waived(name, subject.about["waived"])
        findings = []
        with live(f"checking {name}", quiet) as progress:
            progress(0, len(PROBES), "making tasks")
            bench = Bench(subject, tasks, seed, deadline_s, model)
            for done, probe in enumerate(PROBES.values()):
                progress(done, len(PROBES), probe.name)
                findings.append(_finding(probe, bench, waived.get(probe.name)))
            progress(len(PROBES), len(PROBES), "")
    finally:
        subject.close()
    return Report(name, tuple(findings), len(bench.cases), seed, time.monotonic() - start)


def _waived(name: str, waived: Mapping[str, Any]) -> dict[str, str]:
    for probe, reason in waived.items():
        if probe not in PROBES:
            raise UserError(
                f"{name}.waived_probes names {probe!r}{did_you_mean(probe, PROBES)}: allowed are {', '.join(PROBES)}"
            )
        if not isinstance(reason, str) or not reason.strip():
            raise UserError(f"{name}.waived_probes[{probe!r}] must give the reason, got {reason!r}")
    return dict(waived)


def _finding(probe: Probe, bench: Bench, waived: str | None) -> Finding:
    if waived is not None:
        return Finding(probe.name, probe.meaning, "waived", reason=waived)
    flaws: list[Flaw] = []
    try:
        if missing := "; ".join(_missing(probe, bench)):
            raise InapplicableError(missing)
        flaws.extend(probe.search(bench))
    except InapplicableError as skip:
        if not flaws:
            return Finding(probe.name, probe.meaning, "skipped", reason=str(skip))
    except SubjectError as error:
        flaws.append(Flaw(str(error)))
    return Finding(probe.name, probe.meaning, "failed" if flaws else "passed", tuple(flaws))


def _missing(probe: Probe, bench: Bench) -> Iterator[str]:
    """What a probe needs and this environment has not."""
    if not bench.cases and probe.needs:
        yield "there are no tasks"
        return
    if "gold" in probe.needs and not bench.known:
        yield NO_GOLD
    if "verdicts" in probe.needs:
        played = bench.play(bench.cases[0].task, (NONSENSE,))
        if played.verdict is not None and played.verdict.status is Status.PENDING:
            yield "the verdicts are left to a judge"
        elif bench.about["plain"] or (played.over and played.verdict is None and not played.problems):
            yield "the environment gives no verdicts"
