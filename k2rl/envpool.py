"""Environments stepped by worker threads, never on the loop's thread.

Each worker sets up its own instance of each environment once; a rollout gets a shallow copy of it (see `env.py`) and
stays with its worker, so that what `setup()` made is only ever touched by one thread.
"""

from __future__ import annotations

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
        self._workers = [ThreadPoolExecutor(1, thread_name_prefix=f"k2rl-env-{n}") for n in range(workers)]
        self._ready: list[dict[str, Env]] = [{} for _ in range(workers)]

    @property
    def workers(self) -> int:
        return len(self._workers)

    def submit(self, worker: int, work: Callable[[], T]) -> Future[T]:
        """Run `work` on a worker; its jobs run in order."""
        return self._workers[worker].submit(work)

    def spawn(self, worker: int, name: str) -> Env:
        """An instance for one rollout. Call it on that worker."""
        ready = self._ready[worker]
        if name not in ready:
            env = plugins.make_env(self.specs[name].id, self.specs[name].args)
            env.setup()
            ready[name] = env
        return ready[name].spawn()

    def close(self) -> None:
        """Let each worker close what it set up, and end."""
        for worker, ready in zip(self._workers, self._ready, strict=True):
            for env in ready.values():
                worker.submit(env.close)
            worker.shutdown(wait=True)
