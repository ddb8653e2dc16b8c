"""A run over two machines: hosts of their own as far as network, processes and shared memory go, with Ray between them.

They are namespaces of this one, so it takes root. What ranks, engines and relays do is what they do over a real wire.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: make test-cluster")
pytest.importorskip("vllm", reason="vLLM is not installed: make test-cluster")

pytestmark = pytest.mark.cluster

ADDRESSES = ("10.213.7.1", "10.213.7.2")
PORT = 6399
RAY = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=2", "--num-gpus=1", "--disable-usage-stats"]
"""A GPU that Ray believes in places one rank on each machine."""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


class Machine:
    """A host with a network of its own, which reaches the other by `eth0`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir()

    def start(self, *script: str, **files: Any) -> subprocess.Popen[str]:
        """A shell's lines as its first process: when that ends, all end."""
        own = [
            f"mount --bind {self.folder} /tmp/ray",
            "mount -t tmpfs tmpfs /dev/shm",
            "export GLOO_SOCKET_IFNAME=eth0 RAY_AUTH_MODE=disabled",
            *script,
        ]
        inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec", "\n".join(own)]
        return subprocess.Popen(["ip", "netns", "exec", self.name, *inside], text=True, **files)


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine]]:
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("two machines on one are namespaces: this takes root, `ip` (iproute2) and `unshare`")
    mark = uuid.uuid4().hex[:6]
    names = [f"k2rl-{mark}-{n}" for n in (1, 2)]
    Path("/tmp/ray").mkdir(exist_ok=True)
    with ExitStack() as undone:
        for name in names:
            made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
            undone.callback(run, "ip", "netns", "del", name)
        run("ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, own, other in zip(names, ADDRESSES, reversed(ADDRESSES), strict=True):
            for what in (
                ["addr", "add", f"{own}/24", "dev", "eth0"],
                ["link", "set", "lo", "up"],
                ["link", "set", "eth0", "up"],
                ["route", "add", "default", "via", other],
            ):
                run("ip", "-n", name, *what)
        yield Machine(names[0], tmp_path / "first"), Machine(names[1], tmp_path / "second")


def test_ranks_and_engines_of_two_machines_train_one_model(machines: tuple[Machine, Machine], tmp_path: Path) -> None:
    first, second = machines
    folder = tmp_path / "run"
    train = [sys.executable, "-c", "'from k2rl.cli import main; main()'", "train", "quickstart", "cluster.address=auto"]
    train += ["rollout.engines=2", "trainer.zero_stage=3", "run.iterations=2", "run.eval_tasks=0", "rollout.tasks=10"]
    train += ["rollout.group_size=4", "run.threads=1", "--run-dir", str(folder)]
    head = " ".join(
        [*RAY, "--head", f"--node-ip-address={ADDRESSES[0]}", f"--port={PORT}", "--include-dashboard=false"]
    )
    joined = f"until [ -e {tmp_path}/joined ]; do sleep 0.5; done"
    waits = (
        f"until {sys.executable} -m ray.scripts.scripts health-check --address={ADDRESSES[0]}:{PORT}; do sleep 1; done"
    )
    join = " ".join([*RAY, f"--address={ADDRESSES[0]}:{PORT}", f"--node-ip-address={ADDRESSES[1]}"])
    with ExitStack() as ended:
        one = first.start(head, joined, " ".join(train), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        ended.callback(one.kill)
        two = second.start(waits, join, f"touch {tmp_path}/joined", "sleep 1000", stdout=subprocess.DEVNULL)
        ended.callback(two.kill)
        _, said = one.communicate(timeout=500)
    assert one.returncode == 0, said
    told = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in told] == [1, 2]
    assert all(row["sync/gap"] < 1e-3 for row in told), "both engines hold the weights"
    logs = second.folder.glob("session_2*/logs/worker-*")
    assert any("vllm" in path.read_text(errors="replace").lower() for path in logs), (
        "one of them is on the second machine"
    )
