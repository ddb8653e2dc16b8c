"""How hard tasks are for a policy: pass rates per task, measured once, kept in a file, and filtered by.

The file is the report of `k2rl measure` or of `k2rl eval --json`. Under `envs`, per environment, it has
`tasks: {task id: {"n": samples with a verdict, "correct": how many of them passed, "correct_tokens": [policy tokens of
each that did]}}`; a recipe names it in `envs.X.measured`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from k2rl.errors import UserError
from k2rl.recipe import EnvSpec
from k2rl.scoring import correct
from k2rl.types import SCHEMA_VERSION, Group, Task

_LEVEL = re.compile(r"level-(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Measured:
    """What became of `n` samples of a task: those that passed, and their lengths in policy tokens."""

    n: int
    correct: int
    correct_tokens: tuple[int, ...] = ()

    @property
    def rate(self) -> float:
        """The share that passed."""
        return self.correct / self.n

    def to_json(self) -> dict[str, Any]:
        return {"n": self.n, "correct": self.correct, "correct_tokens": list(self.correct_tokens)}


def tally(group: Group, spec: EnvSpec) -> Measured | None:
    """A group as a measurement of its task; None where no rollout has a verdict."""
    valid = [r for r in group.rollouts if r.verdict is None or r.verdict.scored]
    passed = [r for r in valid if correct(r, spec)]
    return Measured(len(valid), len(passed), tuple(r.policy_tokens for r in passed)) if valid else None


def tasks_of(groups: Sequence[Group], spec: EnvSpec) -> dict[str, dict[str, Any]]:
    """The `tasks` of an environment's report: what every task's group came to, those without a verdict left out."""
    found = {g.task.id: tally(g, spec) for g in groups}
    return {task: measured.to_json() for task, measured in found.items() if measured is not None}


def load(path: str | Path, env: str) -> dict[str, Measured]:
    """What a file says about the tasks of an environment, by task id.

    Raises:
        UserError: no such file, not a report, one without tasks, or of other environments.
    """
    key = f"envs.{env}.measured"
    envs = report_of(path, key)["envs"]
    if env not in envs:
        raise UserError(
            f"{key}: {path} measures the environments {', '.join(envs) or 'none'}, not {env}: "
            "give the environment the name it was measured under, or measure it"
        )
    try:
        return {task: _measured(found) for task, found in envs[env]["tasks"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(f"{key}: {path} has no pass rates per task: make it with `k2rl measure RECIPE`") from None


def report_of(path: str | Path, key: str) -> dict[str, Any]:
    """A report of `k2rl measure` or `k2rl eval --json`; `key` is where the user named it.

    Raises:
        UserError: no such file, not a report, or one of another version.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{key}: no file {path}: make it with `k2rl measure RECIPE --out {path}`")
    try:
        report: dict[str, Any] = json.loads(path.read_text("utf-8"))
        version, _ = report["schema_version"], dict(report["envs"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{key}: {path} is no report of `k2rl measure` or `k2rl eval --json`") from None
    if version != SCHEMA_VERSION:
        raise UserError(f"{key}: {path} has schema version {version}, this k2rl reads {SCHEMA_VERSION}")
    return report


def _measured(found: Mapping[str, Any]) -> Measured:
    measured = Measured(int(found["n"]), int(found["correct"]), tuple(int(t) for t in found["correct_tokens"]))
    if not 0 <= measured.correct <= measured.n or measured.n < 1:
        raise ValueError
    return measured


def of_pool(path: str | Path, env: str, tasks: Sequence[Task]) -> dict[str, Measured]:
    """What a file says about these tasks of an environment; some may be missing.

    Raises:
        UserError: as `load`, or the file knows none of them.
    """
    known = load(path, env)
    found = {t.id: known[t.id] for t in tasks if t.id in known}
    if not found:
        raise UserError(
            f"envs.{env}.measured: none of the {len(known)} tasks in {path} is among the {len(tasks)} training tasks: "
            f"measure with the same seed, envs.{env}.args and pool (`k2rl measure RECIPE`; `k2rl eval` measures the "
            "test split unless told --split train)"
        )
    return found


@dataclass(frozen=True)
class Band:
    """Tasks whose pass rate lies in a band, and how many do not: too easy, too hard, not measured."""

    tasks: list[Task]
    easier: int
    harder: int
    unmeasured: int

    @property
    def left_out(self) -> int:
        return self.easier + self.harder + self.unmeasured


def within(tasks: Sequence[Task], measured: Mapping[str, Measured], band: Sequence[float]) -> Band:
    """Keep the tasks with a pass rate in [band[0], band[1]]. One that was not measured is not known to lie there, and
    is left out.

    Raises:
        UserError: none is left.
    """
    low, high = band
    rates = [measured[t.id].rate if t.id in measured else None for t in tasks]
    kept = [t for t, rate in zip(tasks, rates, strict=True) if rate is not None and low <= rate <= high]
    easier = sum(rate is not None and rate > high for rate in rates)
    harder = sum(rate is not None and rate < low for rate in rates)
    found = Band(kept, easier, harder, rates.count(None))
    if not kept:
        foreign = found.unmeasured > len(tasks) / 2
        fix = "measure with the same seed, args and pool" if foreign else "widen the band"
        raise UserError(
            f"envs.{tasks[0].env}.pass_rate=[{low:g}, {high:g}] leaves none of {len(tasks)} tasks: {easier} are "
            f"easier, {harder} harder, {found.unmeasured} not measured; {fix}"
        )
    return found


def level_of(task: Task) -> float | None:
    """The number of a task's tag `level-N`."""
    matches = (_LEVEL.fullmatch(tag) for tag in task.tags)
    return next((float(m[1]) for m in matches if m), None)
