"""Runs over several processes: Ray, vLLM and DeepSpeed as they are, on two cores. Skipped where not installed."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

pytest.importorskip("ray", reason="Ray is not installed: make test-cluster")
pytest.importorskip("vllm", reason="vLLM is not installed: make test-cluster")

from k2rl.cluster.machines import RayCluster, machines_of
from k2rl.cluster.worker import Job, ask
from k2rl.errors import RunError, UserError
from k2rl.loop import train
from k2rl.recipe import Recipe
from k2rl.recipe_files import load

pytestmark = pytest.mark.cluster

SMALL = ["run.iterations=2", "run.eval_tasks=0", "rollout.tasks=10", "rollout.group_size=4", "run.checkpoint_every=1"]


class Idler:
    """What a worker hosts in these tests."""

    busy = False

    def __init__(self, argument: int) -> None:
        self.argument = argument

    def add(self, more: int) -> int:
        self.argument += more
        return self.argument

    def fail(self) -> None:
        raise ValueError("on purpose")

    def refuse(self) -> None:
        raise UserError("as the user wanted")

    def hang(self) -> None:
        time.sleep(1000)


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """What is in the environment of all processes that come of a test."""
    monkeypatch.setenv("K2RL_TEST", uuid.uuid4().hex)
    return os.environ["K2RL_TEST"]


def left_behind(mark: str) -> list[str]:
    """Processes that came of a test, but for two of Ray's that notice within minutes that the rest is gone."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        # A process may end, and one that has ended has no environment.
        with contextlib.suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_text().replace("\0", " ").strip())
    return [args for args in found if args not in ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "")]


def eventually(done: Callable[[], bool], seconds: float = 60) -> bool:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.5)
    return done()


def nothing_is_left(mark: str) -> None:
    eventually(lambda: not left_behind(mark))
    assert left_behind(mark) == []


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    made = machines_of(load(Recipe, "quickstart", ["cluster.address=local", "trainer.ranks=2"]))
    assert isinstance(made, RayCluster)
    yield made
    made.close()


def test_an_actor_is_a_worker_like_any(cluster: RayCluster) -> None:
    (one, two) = cluster.ranks([Job(f"idler {n}", "test_cluster:Idler", 10 * n, hang_s=5) for n in range(2)])
    one.send("add", 1)
    two.send("add", 1)
    one.tell("add", 1)
    assert (one.receive(), two.receive(), ask(one, "add", 0)) == (1, 11, 2)
    assert one.produced(0.0) == []
    with pytest.raises(RunError, match="idler 0: ValueError: on purpose"):
        ask(one, "fail")
    with pytest.raises(UserError, match="as the user wanted"):
        ask(one, "refuse")
    os.kill(one.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="idler 0 has ended"):
        ask(one, "add", 1)
    with pytest.raises(RunError, match=r"idler 1 has given no sign of life for 5 s; where it is:\n(.|\n)* in hang"):
        ask(two, "hang")
    one.close()
    two.close()


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError, match=r"cluster\.address=127\.0\.0\.1:1: .*use local"):
        machines_of(load(Recipe, "quickstart", ["cluster.address=127.0.0.1:1"]))


def test_a_run_over_ray_vllm_and_deepspeed_goes_on_where_it_stopped(tmp_path: Path, mark: str) -> None:
    recipe = load(Recipe, "quickstart", ["cluster.address=local", *SMALL])
    assert (recipe.rollout.engine, recipe.trainer.backend) == ("vllm", "deepspeed")
    train(recipe, tmp_path / "run", quiet=True)
    told = metrics(tmp_path / "run")
    with safe_open(tmp_path / "run" / "model" / "model.safetensors", "pt") as file:
        size = sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118 (it is no dict)
    for row in told:
        assert row["sync/gap"] < 1e-3, "proven after every update"
        assert row["mismatch/max"] < 1e-3
        assert 0 < row["perf/engine_idle"] < 1
        assert row["sync/bytes"] == size
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "000002")
    (tmp_path / "run" / "model" / "model.safetensors").unlink()
    train(recipe, tmp_path / "run", quiet=True, resume=True)
    assert [row["iteration"] for row in metrics(tmp_path / "run")] == [1, 2]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    nothing_is_left(mark)


def started(folder: Path, *overrides: str, resume: bool = False) -> subprocess.Popen[str]:
    """A run of the quickstart in a process of its own."""
    command = [sys.executable, "-c", "from k2rl.cli import main; main()", "train", "quickstart", *SMALL, *overrides]
    command += ["--run-dir", str(folder), *(["--resume"] if resume else [])]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def workers_of(run: subprocess.Popen[str], target: str) -> list[int]:
    """The processes of a run's workers that host such an object, by what their environment says."""
    told = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in told.splitlines()[1:]]
    return [int(pid) for pid, parent, args in rows if int(parent) == run.pid and target in args]


def after_an_iteration(run: subprocess.Popen[str], folder: Path) -> None:
    """Wait until the first iteration is over, and the second has begun."""
    path = folder / "metrics.jsonl"
    assert eventually(lambda: (path.exists() and metrics(folder) != []) or run.poll() is not None, 300)
    time.sleep(1)


def test_an_engine_that_is_killed_is_replaced_and_no_rollout_is_lost_or_doubled(tmp_path: Path, mark: str) -> None:
    folder = tmp_path / "run"
    more = ["rollout.engine=vllm", "rollout.engines=2", "run.iterations=4", "critic.enabled=false", "envs.writing=null"]
    run = started(folder, *more)
    after_an_iteration(run, folder)
    os.kill(workers_of(run, "k2rl.cluster.child")[0], signal.SIGKILL)
    _, said = run.communicate(timeout=400)
    assert run.returncode == 0, said
    assert "another one takes its place" in said
    told = metrics(folder)
    assert sum(row["errors/engines_lost"] for row in told) == 1
    assert all(row["sync/gap"] < 1e-3 for row in told)
    for path in sorted((folder / "rollouts").glob("*.gz")):
        rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        assert len(rows) == 40
        assert len({(row["task_id"], row["k"]) for row in rows}) == 40
    nothing_is_left(mark)


def test_a_trainer_rank_that_is_killed_ends_the_run_by_name_and_it_resumes(tmp_path: Path, mark: str) -> None:
    folder = tmp_path / "run"
    more = ["trainer.backend=deepspeed", "trainer.ranks=2", "run.iterations=4"]
    run = started(folder, *more)
    after_an_iteration(run, folder)
    os.kill(workers_of(run, "k2rl.cluster.child")[1], signal.SIGKILL)
    _, said = run.communicate(timeout=400)
    assert run.returncode == 1
    assert "trainer rank 1 has ended (exit code -9)" in said
    assert "Traceback (most recent call last)" not in said.split("trainer rank 1 has ended")[0]
    nothing_is_left(mark)
    again = started(folder, *more, resume=True)
    _, said = again.communicate(timeout=400)
    assert again.returncode == 0, said
    assert [row["iteration"] for row in metrics(folder)] == [1, 2, 3, 4]


def test_a_driver_that_is_killed_leaves_nothing_and_the_run_resumes(tmp_path: Path, mark: str) -> None:
    folder = tmp_path / "run"
    run = started(folder, "cluster.address=local")
    after_an_iteration(run, folder)
    run.kill()
    run.wait()
    nothing_is_left(mark)
    again = started(folder, "cluster.address=local", resume=True)
    _, said = again.communicate(timeout=400)
    assert again.returncode == 0, said
    assert [row["iteration"] for row in metrics(folder)] == [1, 2]
