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
from k2rl.errors import UnavailableError, UserError, users_code
from k2rl.progress import console
from k2rl.recipe import EnvSpec

T = TypeVar("T")


class EnvPool:
    """The recipe's environments and the threads that step them.

    `templates` has one instance of each for the loop's own thread; `left_out` says why an optional one is missing.

    Raises:
        UserError: an environment can't be made or set up, or none is left.
    """

    def __init__(self, specs: Mapping[str, EnvSpec], workers: int) -> None:
        self.specs = specs
        self.templates: dict[str, Env] = {}
        self.left_out: dict[str, str] = {}
        self._workers = [ThreadPoolExecutor(1, thread_name_prefix=f"k2rl-env-{n}") for n in range(workers)]
        self._ready: list[dict[str, Env]] = [{} for _ in range(workers)]
        try:
            for name, spec in specs.items():
                self._add(name, spec)
            if not self.templates:
                raise UserError(f"no environment is left: {'; '.join(f'{n}: {r}' for n, r in self.left_out.items())}")
        except BaseException:
            self.close()
            raise

    def _add(self, name: str, spec: EnvSpec) -> None:
        """Make an environment and set it up on one worker, so that what can't work is known before a run begins."""
        try:
            template = plugins.make_env(spec.id, spec.args)
            with users_code(f"setup() of env {name}"):
                self.submit(0, lambda: self.spawn(0, name)).result()
        except UnavailableError as error:
            if not spec.optional:
                raise UnavailableError(f"env {name}: {error}; or leave it out: envs.{name}.optional=true") from None
            self.left_out[name] = str(error)
            console.print(f"env {name} is left out: {error}", markup=False, soft_wrap=True)
        else:
            self.templates[name] = template

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
