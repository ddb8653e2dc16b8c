"""Trackers: what they are given, that none of them can hold a run up or end it, and each with its real package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from k2rl.errors import UserError
from k2rl.loop import train
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve, save
from k2rl.trackers import TRACKERS, check_installed, feed
from k2rl.trackers.base import TrackedRun
from k2rl.trackers.feed import Feed, Trackers

ROWS = [
    {"reward/math": 0.25 * n, "critic/weight": 0.5, "critic/weight/story": 0.5, "eval/m/pass@1": 1.0} for n in (1, 2)
]


class Scripted:
    """Remembers what it is told, and fails or hangs where it is asked to (`at`: start, log or close)."""

    told: list[Any] = []  # noqa: RUF012
    free = threading.Event()
    """Ends all hanging."""

    def __init__(self, run: TrackedRun, at: str = "", how: str = "fail", id: str = "abc") -> None:
        self.at, self.how, self.id = at, how, run.id or id
        self.told.append(run)
        self._meet("start")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._meet("log")
        self.told.append((step, dict(metrics)))

    def close(self) -> None:
        self._meet("close")
        self.told.append("closed")

    def _meet(self, call: str) -> None:
        if call == self.at and self.how == "hang":
            self.free.wait()
        elif call == self.at:
            raise SystemExit(3) if self.how == "exit" else ConnectionError("no route\nto the service")


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Two trackers of this file under names of installed packages; what both are told."""
    monkeypatch.setattr(Scripted, "told", [])
    monkeypatch.setattr(Scripted, "free", threading.Event())
    for name in ("yaml", "rich"):
        monkeypatch.setitem(TRACKERS, name, "test_trackers:Scripted")
    yield Scripted.told
    Scripted.free.set()


def run_of(folder: Path, **options: Any) -> TrackedRun:
    given: dict[str, Any] = {"recipe": {"seed": 3, "model.path": "nano", "run.threads": None}, "first": 1, "id": None}
    return TrackedRun("my-run", folder, **given | options)


@pytest.fixture
def recipe(tiny_folder: Path) -> Callable[..., Recipe]:
    def make(*overrides: str) -> Recipe:
        data = {
            "model": {"path": str(tiny_folder)},
            "envs": {"math": {"id": "math", "args": {"level": 1}, "pool": 20, "budget": {"tokens": 4}}},
            "run": {"iterations": 3, "checkpoint_every": 1, "eval_tasks": 0, "threads": 1},
            "rollout": {"tasks": 2, "group_size": 2},
            "trainer": {"updates_per_iteration": 1},
        }
        return resolve(Recipe, data, overrides)

    return make


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_run_tells_its_trackers_what_it_writes(
    recipe: Callable[..., Recipe], tmp_path: Path, scripted: list[Any]
) -> None:
    train(recipe("run.trackers=[yaml]"), tmp_path / "my-run", quiet=True)
    begun, *logged, closed = scripted
    assert (begun.name, begun.first, begun.id) == ("my-run", 1, None)
    assert begun.recipe["rollout.group_size"] == 2
    assert begun.folder == tmp_path / "my-run" / "trackers" / "yaml"
    written = rows(tmp_path / "my-run")
    assert logged == [(row.pop("iteration"), row) for row in written if row.pop("schema_version")]
    assert logged[0][1]["errors/trackers_lost"] == 0
    assert closed == "closed"


def test_a_resumed_run_goes_on_in_the_same_one_or_with_other_trackers(
    recipe: Callable[..., Recipe], tmp_path: Path, scripted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from k2rl.loop import Run

    iterate = Run.iterate

    def stop_at_3(self: Run, iteration: int) -> Any:
        if iteration == 3:
            raise KeyboardInterrupt
        return iterate(self, iteration)

    monkeypatch.setattr(Run, "iterate", stop_at_3)
    with pytest.raises(KeyboardInterrupt):
        train(recipe("run.trackers=[yaml]"), tmp_path / "run", quiet=True)
    monkeypatch.setattr(Run, "iterate", iterate)
    scripted.clear()
    train(recipe("run.trackers=[yaml,rich]", "run.tracker_args.rich.id=xyz"), tmp_path / "run", resume=True, quiet=True)
    begun = {run.folder.name: run for run in scripted if isinstance(run, TrackedRun)}
    assert (begun["yaml"].id, begun["yaml"].first) == ("abc", 3)
    assert (begun["rich"].id, begun["rich"].first) == (None, 3)
    assert [told[0] for told in scripted if isinstance(told, tuple)] == [3, 3]
    assert (tmp_path / "run" / "trackers" / "rich" / "run_id").read_text() == "xyz"


@pytest.mark.parametrize("how", ["fail", "exit"])
@pytest.mark.parametrize("at", ["start", "log", "close"])
def test_one_that_fails_is_named_once_and_left_alone(
    at: str, how: str, recipe: Callable[..., Recipe], tmp_path: Path, scripted: list[Any], capsys: Any
) -> None:
    made = recipe("run.trackers=[rich,yaml]", f"run.tracker_args.rich.at={at}", f"run.tracker_args.rich.how={how}")
    trackers = Trackers.start(made, tmp_path, 1)
    for step, row in enumerate(ROWS, 1):
        trackers.log(row, step)
    trackers.close()
    said = capsys.readouterr().err.splitlines()
    why = "SystemExit: 3" if how == "exit" else "ConnectionError: no route"
    assert said == [f"tracker rich failed to {at} ({why}): left alone, the run goes on"]
    assert trackers.metrics == {"errors/trackers_lost": 1}
    assert all(row in scripted for row in enumerate(ROWS, 1)), "the other one has all"
    assert scripted.count("closed") == 1


def test_a_failing_tracker_is_counted_and_changes_nothing_else(
    recipe: Callable[..., Recipe], tmp_path: Path, capsys: Any
) -> None:
    train(recipe(), tmp_path / "without", quiet=True)
    train(recipe("run.trackers=[rich]", "run.tracker_args.rich.at=start"), tmp_path / "with", quiet=True)
    found = rows(tmp_path / "with")
    assert found[-1]["errors/trackers_lost"] == 1
    for a, b in zip(found, rows(tmp_path / "without"), strict=True):
        del a["errors/trackers_lost"]
        own = [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in (a, b)]
        assert own[0] == own[1]
    assert capsys.readouterr().err.count("tracker rich") == 1


@pytest.mark.parametrize("at", ["start", "log", "close"])
def test_one_that_hangs_holds_nothing_up_and_is_given_up_at_the_end(
    at: str, tmp_path: Path, scripted: list[Any], capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_SILENCE_S", 0.05)
    monkeypatch.setattr(feed, "_PATIENCE_S", 0.2)
    hanging = Feed("slow", lambda: Scripted(run_of(tmp_path), at, "hang"))
    sound = Feed("sound", lambda: Scripted(run_of(tmp_path)))
    trackers = Trackers([hanging, sound])
    started = time.monotonic()
    for step, row in enumerate(ROWS, 1):
        trackers.log(row, step)
    trackers.close()
    assert time.monotonic() - started < 5
    waiting, lost = capsys.readouterr().err.splitlines()
    assert waiting == "waiting for slow to take in the rest, 0.2 s at most"
    assert lost == "tracker slow has not taken in everything within 0.2 s: left alone, the run goes on"
    assert (bool(hanging.lost), sound.lost, "closed" in scripted) == (True, "", True)


HANGING = """
import atexit, time
from k2rl.trackers import TRACKERS, feed
TRACKERS["yaml"], feed._PATIENCE_S, feed._SILENCE_S = "test_trackers:Scripted", 0.3, 0.1
atexit.register(time.sleep, 600)
from k2rl.cli import main
main()
"""


def test_one_that_hangs_does_not_keep_the_process(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    save(recipe("run.trackers=[yaml]", "run.tracker_args.yaml={at: close, how: hang}"), tmp_path / "recipe.yaml")
    command = [
        sys.executable,
        "-c",
        HANGING,
        "train",
        str(tmp_path / "recipe.yaml"),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert "tracker yaml has not taken in everything within 0.3 s" in done.stderr
    assert done.stdout.startswith("the model is in ")


def test_one_that_falls_far_behind_is_left_alone(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "_ROOM", 5)
    slow = Feed("slow", lambda: Scripted(run_of(tmp_path), "start", "hang"))
    trackers = Trackers([slow])
    for step in range(50):
        trackers.log({"x": 1.0}, step)
    trackers.close()
    assert capsys.readouterr().err == "tracker slow is 5 iterations behind: left alone, the run goes on\n"


def test_a_package_that_is_not_there_is_said_before_anything_starts(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "no_such_package", "test_trackers:Scripted")
    with pytest.raises(UserError, match=r"^run.trackers: no_such_package .* pip install 'k2rl\[no_such_package\]'"):
        train(recipe("run.trackers=[no_such_package]"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    (tmp_path / "no_such_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="not installed"):
        check_installed(["no_such_package"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["run.trackers=[wandbb]"], "run.trackers is 'wandbb': this version has tensorboard, wandb, mlflow, trackio"),
        (["run.trackers=[wandb,wandb]"], "run.trackers names wandb twice"),
        (["run.tracker_args.wandb.mode=offline"], "run.tracker_args.wandb has no effect"),
        (["run.trackers=[wandb]", "run.tracker_args.wandb=3"], "run.tracker_args.wandb is 3: it is a mapping"),
    ],
)
def test_wrong_keys(overrides: list[str], says: str, recipe: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError) as caught:
        recipe(*overrides)
    assert says in str(caught.value)


def test_nothing_is_imported_unless_chosen() -> None:
    program = f"import sys, k2rl.loop; print([n for n in {list(TRACKERS)[:4]} if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"


# --- with the real packages --------------------------------------------------------------------------------------


def logged(name: str, run: TrackedRun, rows: list[dict[str, float]] = ROWS, **options: Any) -> str | None:
    """Log rows from `run.first` on, and return the id, by which the run can be taken up."""
    pytest.importorskip(name, reason=f"extra {name} is not installed")
    from k2rl import plugins

    tracker = plugins.load_class(TRACKERS[name], name)(run, **options)
    for step, row in enumerate(rows, run.first):
        tracker.log(row, step)
    tracker.close()
    found: str | None = tracker.id
    return found


def test_tensorboard(tmp_path: Path) -> None:
    logged("tensorboard", run_of(tmp_path))
    logged("tensorboard", run_of(tmp_path, first=2), [{"reward/math": 0.75}])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in found.Scalars("reward/math")] == [(1, 0.25), (2, 0.75)]
    assert found.Scalars("eval/m/pass@1")[0].value == 1
    assert "recipe" in found.Tags()["tensors"]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    first = logged("wandb", run_of(tmp_path), mode="offline")
    assert logged("wandb", run_of(tmp_path, first=2, id=first), mode="offline") == first
    files = list((tmp_path / "wandb").glob(f"offline-run-*/run-{first}.wandb"))
    assert files
    assert all(b"reward/math" in file.read_bytes() for file in files)


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = logged("mlflow", run_of(tmp_path))
    assert logged("mlflow", run_of(tmp_path, first=3, id=first)) == first
    from mlflow import MlflowClient

    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("k2rl").experiment_id])
    assert (found.info.run_name, found.info.status, found.data.params["model.path"]) == ("my-run", "FINISHED", "nano")
    assert sorted(found.data.metrics) == ["critic/weight", "critic/weight.story", "eval/m.pass_1", "reward/math"]
    history = client.get_metric_history(first, "reward/math")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.5), (3, 0.25), (4, 0.5)]


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "store"))
    first = logged("trackio", run_of(tmp_path))
    assert logged("trackio", run_of(tmp_path, first=3, id=first)) == first
    assert capsys.readouterr().out == "", "stdout belongs to --json"
    import trackio

    (found,) = trackio.Api().runs("k2rl")
    assert found.name == "my-run"
