"""Two things to compare, each in a process of its own, doing one step at a time in turn."""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from typing import Any

import torch

Measured = dict[str, float]
"""What a side says of a step: `s` is its seconds, `cpu_s` those of all its threads, the rest is the side's own."""


class Side:
    """A child process that runs `main(link, *args)`: it sends what it measured of a step, and then waits for word.

    Raises:
        RuntimeError: the child ended early; its traceback is on stderr.
    """

    def __init__(self, main: Callable[..., None], *args: Any) -> None:
        # Waiting threads sleep: where other programs run, spinning ones slow a side down many times over.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        context = multiprocessing.get_context("spawn")
        self._link, theirs = context.Pipe()
        self._process = context.Process(target=main, args=(Link(theirs), *args), daemon=False)
        self._process.start()
        theirs.close()

    def step(self) -> Measured:
        try:
            self._link.send(True)
            measured: Measured = self._link.recv()
        except (EOFError, OSError):
            self._process.join()
            raise RuntimeError(f"a side ended with status {self._process.exitcode}") from None
        return measured

    def close(self) -> None:
        """Tell it to end; a side that waits for a step does at once."""
        self._link.close()
        self._process.join()


class Link:
    """The child's end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def wait(self) -> None:
        """Return when it is this side's turn; end the process when there is no turn to come."""
        try:
            self._connection.recv()
        except EOFError:
            os._exit(0)

    def send(self, measured: Measured) -> None:
        self._connection.send(measured)


def in_turn(sides: Mapping[str, Side], steps: int, warmup: int = 1) -> dict[str, list[Measured]]:
    """`steps` steps of each side after `warmup` of them, A B A B …"""
    found: dict[str, list[Measured]] = {name: [] for name in sides}
    for step in range(warmup + steps):
        for name, side in sides.items():
            measured = side.step()
            if step >= warmup:
                found[name].append(measured)
    return found


def spread(lengths: Sequence[float]) -> Measured:
    """How long a step's responses were."""
    return {"tokens": sum(lengths), "longest": max(lengths), "median": statistics.median(lengths)}


def facts(packages: Sequence[str]) -> dict[str, Any]:
    """Machine, versions of the packages that are installed, commit."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "schema_version": 1,
        "machine": f"{platform.machine()}, {_cpu()}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}",
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "passive"),
        **{name: found for name in packages if (found := _version(name))},
        "load_average": os.getloadavg(),
        "commit": git.stdout.strip(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else "unknown CPU"
