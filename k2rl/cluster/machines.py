"""Where workers are started: on this machine as child processes, or in a Ray cluster as actors.

GPUs, where there are any: a rank has one of its own. Engines take those of the ranks (`cluster.colocated`: one of the
two sleeps while the other works), `rollout.tensor_parallel` of them each, or further ones.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch

from k2rl.cluster.child import ChildProcess
from k2rl.cluster.worker import Job, Worker, close_all
from k2rl.errors import UserError
from k2rl.recipe import Recipe

_CPUS = 0.1
"""What a bundle reserves: Ray places by GPUs, and a machine's processors are shared by all on it."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_HERE = 0.001
"""Of the resource that every machine has of itself."""
_PLACING_S = 120
_ANSWER_S = 10


class Machines(Protocol):
    """See the module. `rank_count`: how many ranks the trainer has."""

    rank_count: int

    def ranks(self, jobs: Sequence[Job]) -> list[Worker]:
        """The trainer's ranks, all at once."""

    def engine(self, n: int, job: Job) -> Worker:
        """The n-th engine; again, where one was lost."""

    def env_host(self, n: int, job: Job) -> Worker:
        """The process of the n-th environment worker; again, where one was lost."""

    def close(self) -> None:
        """Give back what is reserved. The workers are closed by whoever asked for them."""


def started(starts: Sequence[Callable[[], Worker]]) -> list[Worker]:
    """Workers that start at the same time; where one can't, the others are closed, and its error raised."""
    with ThreadPoolExecutor(len(starts)) as threads:
        made = [threads.submit(start) for start in starts]
    failed = [error for one in made if (error := one.exception())]
    if failed:
        close_all([one.result() for one in made if not one.exception()])
        raise failed[0]
    return [one.result() for one in made]


def machines_of(recipe: Recipe) -> Machines:
    """What `cluster.address` stands for.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    if recipe.cluster.address == "none":
        return ThisMachine(recipe)
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"cluster.address={recipe.cluster.address}: Ray is not installed; pip install 'k2rl[ray]'")
    return RayCluster(recipe)


def _rank_count(recipe: Recipe, gpus: int) -> int:
    """`trainer.ranks`, or one for each GPU that is there for them; two without GPUs."""
    return recipe.trainer.ranks or gpus or 2


def _reachable(address: str) -> None:
    """Ray itself tries for minutes. Raises `OSError` where nobody answers."""
    host, _, port = address.rpartition(":")
    if host:
        socket.create_connection((host, int(port)), _ANSWER_S).close()


class ThisMachine:
    """Child processes."""

    def __init__(self, recipe: Recipe) -> None:
        self._gpus = torch.cuda.device_count()
        self.rank_count = _rank_count(recipe, self._gpus) if recipe.trainer.backend == "deepspeed" else 1
        self._parallel, self._colocated = recipe.rollout.tensor_parallel, recipe.cluster.colocated

    def ranks(self, jobs: Sequence[Job]) -> list[Worker]:
        return started([partial(ChildProcess, self._seeing(job, [n])) for n, job in enumerate(jobs)])

    def engine(self, n: int, job: Job) -> Worker:
        first = n * self._parallel + (0 if self._colocated else self.rank_count)
        return ChildProcess(self._seeing(job, range(first, first + self._parallel)))

    def env_host(self, n: int, job: Job) -> Worker:
        return ChildProcess(job)

    def close(self) -> None:
        """There is nothing to give back."""

    def _seeing(self, job: Job, devices: Sequence[int]) -> Job:
        """The job with GPUs of its own, where there are any; a single one is everybody's."""
        if not self._gpus:
            return job
        visible = os.environ.get(_VISIBLE, ",".join(map(str, range(self._gpus)))).split(",")
        own = ",".join(visible[n % self._gpus] for n in devices)
        return replace(job, environment={**job.environment, _VISIBLE: own})


class RayCluster:
    """Actors in a placement group of this run's own: a bundle for each rank, and for each engine that shares none."""

    def __init__(self, recipe: Recipe) -> None:
        import ray
        from ray.util.placement_group import placement_group

        from k2rl.cluster.ray_worker import address_of

        self._ray, self._address = ray, recipe.cluster.address
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        where = {"include_dashboard": False} if self._address == "local" else {}
        try:
            _reachable(self._address)
            ray.init(address=self._address, logging_level="ERROR", log_to_driver=False, **where)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"cluster.address={self._address}: {reason}; start one with `ray start --head`, or use local"
            ) from None
        try:
            gpus = int(ray.cluster_resources().get("GPU", 0))
            rollout, self._colocated = recipe.rollout, recipe.cluster.colocated
            self._parallel, engines = rollout.tensor_parallel, rollout.engines if rollout.engine == "vllm" else 0
            for_engines = 0 if self._colocated else engines * self._parallel
            self.rank_count = _rank_count(recipe, gpus - for_engines) if recipe.trainer.backend == "deepspeed" else 0
            if gpus and self.rank_count + for_engines > gpus:
                raise UserError(
                    f"trainer.ranks={self.rank_count} and rollout.engines={engines} of {self._parallel} need "
                    f"{self.rank_count + for_engines} GPUs, the cluster has {gpus}"
                )
            self._gpu = 1.0 if gpus else 0.0
            self._shared = self._colocated and self.rank_count > 0
            bundles = [self._bundle(1)] * self.rank_count
            if bundles:
                # Weights leave rank 0 by shared memory: the driver takes them home, and to other machines.
                here = address_of(ray.get_runtime_context().get_node_id())
                bundles[0] = {**bundles[0], f"node:{here}": _HERE}
            bundles += [] if self._shared else [self._bundle(self._parallel)] * engines
            self._group = placement_group(bundles, strategy="PACK")
            if not self._group.wait(_PLACING_S):
                raise UserError(
                    f"cluster.address={self._address}: no room for {bundles} within {_PLACING_S} s: lower "
                    "trainer.ranks or rollout.engines, or see `ray status` for who has it"
                )
        except BaseException:
            ray.shutdown()
            raise

    def ranks(self, jobs: Sequence[Job]) -> list[Worker]:
        from k2rl.cluster.ray_worker import RayWorker

        takes = self._gpu / 2 if self._shared else self._gpu
        return started([partial(RayWorker, job, self._options(n, takes)) for n, job in enumerate(jobs)])

    def engine(self, n: int, job: Job) -> Worker:
        from k2rl.cluster.ray_worker import RayWorker

        if self._shared:
            return RayWorker(job, self._options(n % self.rank_count, self._gpu / 2))
        return RayWorker(job, self._options(self.rank_count + n, self._gpu * self._parallel))

    def env_host(self, n: int, job: Job) -> Worker:
        from k2rl.cluster.ray_worker import RayWorker

        return RayWorker(job, {"num_cpus": _CPUS, "num_gpus": 0, "scheduling_strategy": "SPREAD"})

    def close(self) -> None:
        from ray.util.placement_group import remove_placement_group

        with contextlib.suppress(Exception):
            remove_placement_group(self._group)
        self._ray.shutdown()

    def _bundle(self, gpus: int) -> dict[str, float]:
        return {"CPU": _CPUS, **({"GPU": gpus} if self._gpu else {})}

    def _options(self, bundle: int, gpus: float) -> dict[str, Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        placed = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        return {"num_cpus": 0, "num_gpus": gpus, "scheduling_strategy": placed, "max_concurrency": 1}
