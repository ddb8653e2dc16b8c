"""Pass rates per task: their file, the band, and what a file must not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from k2rl import Task
from k2rl.difficulty import Measured, level_of, load, of_pool, tally, within
from k2rl.errors import UserError
from k2rl.recipe import EnvSpec
from k2rl.types import End, Group, Rollout, Segment, Status, Verdict

TASKS = [Task(f"task {n}", env="m") for n in range(5)]
RATES = [0.0, 0.25, 0.5, 1.0]


def report(path: Path, env: str = "m", **changes: Any) -> Path:
    tasks = {t.id: Measured(4, int(4 * r)).to_json() for t, r in zip(TASKS, RATES, strict=False)}
    path.write_text(json.dumps({"schema_version": 1, "envs": {env: {"tasks": tasks}}} | changes))
    return path


def rollout(verdict: Verdict, tokens: int, end: End = End.STOP) -> Rollout:
    segment = Segment("policy", (1,) * tokens, (0.0,) * tokens)
    return Rollout(TASKS[0], 0, (1,), (segment,), end, (verdict,))


def test_a_group_is_a_measurement_of_what_has_a_verdict() -> None:
    failed = Verdict.failure(Status.TIMEOUT, "slow")
    rollouts = (
        rollout(Verdict.of(True), 7),
        rollout(Verdict.of(0.5), 5),
        rollout(failed, 3),
        rollout(Verdict.of(True), 9, End.BUDGET),
        rollout(Verdict.of(True), 2),
    )
    assert tally(Group(TASKS[0], rollouts), EnvSpec(id="x")) == Measured(4, 2, (7, 2))
    assert tally(Group(TASKS[0], (rollout(failed, 3),)), EnvSpec(id="x")) is None


def test_the_band_is_inclusive_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    measured = of_pool(report(tmp_path / "m.json"), "m", TASKS)
    band = within(TASKS, measured, [0.25, 0.5])
    assert [t.prompt for t in band.tasks] == ["task 1", "task 2"]
    assert (band.easier, band.harder, band.unmeasured, band.left_out) == (1, 1, 1, 3)
    with pytest.raises(UserError, match="leaves none of 5 tasks: 2 are easier, 2 harder, 1 not measured; widen"):
        within(TASKS, measured, [0.3, 0.4])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p, "no file .*m.json: make it with `k2rl measure RECIPE --out"),
        (lambda p: p.write_text("{"), "m.json is no report of"),
        (lambda p: p.write_text("[1]"), "m.json is no report of"),
        (lambda p: p.write_bytes(b"\xff"), "m.json is no report of"),
        (lambda p: report(p, schema_version=9), "has schema version 9, this k2rl reads 1"),
        (lambda p: report(p, env="other"), "measures the environments other, not m"),
        (lambda p: report(p, envs={"m": {"n": 3}}), "has no pass rates per task"),
        (lambda p: report(p, envs={"m": {"tasks": {"a": {"n": 0}}}}), "has no pass rates per task"),
        (
            lambda p: report(p, envs={"m": {"tasks": {"a": {"n": 2, "correct": 3, "correct_tokens": []}}}}),
            "has no pass rates per task",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(make: Any, message: str, tmp_path: Path) -> None:
    make(tmp_path / "m.json")
    with pytest.raises(UserError, match=rf"^envs\.m\.measured: .*{message}") as caught:
        load(tmp_path / "m.json", "m")
    assert "\n" not in str(caught.value)


def test_a_file_about_other_tasks_is_refused(tmp_path: Path) -> None:
    strangers = [Task("another", env="m")]
    with pytest.raises(UserError, match=r"none of the 4 tasks in .* is among the 1 training tasks: measure with"):
        of_pool(report(tmp_path / "m.json"), "m", strangers)


def test_levels_come_from_tags() -> None:
    assert level_of(Task("x", tags=("algebra", "level-3"))) == 3
    assert level_of(Task("x", tags=("level-3b", "levels-1"))) is None
