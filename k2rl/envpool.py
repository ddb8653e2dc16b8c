"""Environments stepped by worker threads, never on the loop's thread.

Each worker sets up its own instance of each environment once; a rollout gets a shallow copy of it (see `env.py`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from k2rl import plugins
from k2rl.env import Env
from k2rl.recipe import EnvSpec

T = TypeVar("T")


class EnvPool:
    """The recipe's environments and the threads that step them."""

    def __init__(self, specs: Mapping[str, EnvSpec], workers: int) -> None:
        self.specs = specs
        self.templates = {name: plugins.make_env(spec.id, spec.args) for name, spec in specs.items()}
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="k2rl-env")
        self._local = threading.local()
        self._lock = threading.Lock()
        self._made: list[Env] = []

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` on a worker."""
        return self._executor.submit(work)

    def spawn(self, name: str) -> Env:
        """An instance for one rollout. Call it on a worker."""
        ready: dict[str, Env] = self._local.__dict__.setdefault("ready", {})
        if name not in ready:
            env = plugins.make_env(self.specs[name].id, self.specs[name].args)
            env.setup()
            ready[name] = env
            with self._lock:
                self._made.append(env)
        return ready[name].spawn()

    def close(self) -> None:
        """Wait for the workers and close what they set up."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        for env in self._made:
            env.close()
