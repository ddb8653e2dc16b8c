"""Several samplers as one: requests go to whoever has least to do, and one whose process ends is replaced.

A request stays whole, so that its samples share the prompt. When a member is lost, another is started in its place, is
sent the weights, and is given what the lost one had not finished: samples are drawn by their keys, so they are the ones
that were lost. Nothing is returned twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from k2rl.cluster.worker import WorkerGoneError
from k2rl.errors import RunError
from k2rl.progress import console
from k2rl.protocols import Completion, Request
from k2rl.samplers.vllm_sampler import VllmSampler

T = TypeVar("T")
Weights = Callable[[], Iterable[tuple[str, torch.Tensor]]]

MOST_LOST = 3
"""So many members in a row that end before they have finished a sample are no accident."""


@dataclass
class _Running:
    """A request under way: where, and which of its samples are out (by the place they have there)."""

    request: Request
    member: int
    places: tuple[int, ...]
    out: set[int]


class SamplerPool:
    """See the module.

    Args:
        start: makes the n-th member; tens of seconds, all at the same time.
        weights: the weights as they were published last, for a member that is new.
        on_close: called when all members are closed.
    """

    def __init__(
        self,
        start: Callable[[int], VllmSampler],
        members: int,
        weights: Weights,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._start, self._weights, self._on_close = start, weights, on_close
        self._running: dict[str, _Running] = {}
        self._lost = 0
        self.version = 0
        self.prove: Callable[[VllmSampler], object] = lambda member: None
        """Called with a member that has replaced another one and been sent the weights."""
        self.restarts = 0
        """Members replaced since the pool was made."""
        self.busy_s = 0.0
        """Seconds in which samples were under way or labels scored."""
        self._since = 0.0
        self.sent = 0
        """Bytes of the weights that were published last."""
        with ThreadPoolExecutor(members) as threads:
            made = [threads.submit(start, n) for n in range(members)]
        failed = [error for one in made if (error := one.exception())]
        self.members = [one.result() for one in made if not one.exception()]
        if failed:
            self.close()
            raise failed[0]

    # --- samples -----------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        if requests and not self._running:
            self._since = time.perf_counter()
        load = [0] * len(self.members)
        for running in self._running.values():
            load[running.member] += len(running.out)
        shares: list[list[Request]] = [[] for _ in self.members]
        for request in requests:
            member = load.index(min(load))
            load[member] += request.n
            shares[member].append(request)
            places = tuple(range(request.n))
            self._running[request.id] = _Running(request, member, places, set(places))
        for n, share in enumerate(shares):
            if share:
                self._submit(n, share)

    def poll(self) -> list[Completion]:
        done = list[Completion]()
        for n in range(len(self.members)):
            done += self._known(self._safely(n, lambda member: member.poll()) or [])
        return done

    def abort(self, ids: Iterable[str] | None = None) -> list[Completion]:
        wanted = None if ids is None else list(ids)
        return [one for found in self.each(lambda member: member.abort(wanted)) for one in self._known(found)]

    def score_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> NDArray[np.float32]:
        if self._running:
            raise ValueError("score_labels while samples are under way: poll them to the end or abort them first")
        started, count = time.perf_counter(), len(self.members)
        # Neighbours share a beginning: they stay together.
        edges = [len(prompts) * n // count for n in range(count + 1)]
        shares = [prompts[edges[n] : edges[n + 1]] for n in range(count)]

        def begin(n: int) -> bool | None:
            return self._safely(n, lambda member: member.ask_labels(shares[n], label_ids))

        def end(n: int) -> NDArray[np.float32] | None:
            return self._safely(n, lambda member: member.told_labels())

        under_way = [begin(n) for n in range(count)]
        told = [end(n) if under_way[n] else None for n in range(count)]
        scores = [self.members[n].score_labels(shares[n], label_ids) if t is None else t for n, t in enumerate(told)]
        self.busy_s += time.perf_counter() - started
        return np.concatenate(scores)

    # --- weights -----------------------------------------------------------------------------------------

    def publish(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        if self._running:
            raise ValueError("publish while samples are under way: poll them to the end or abort them first")
        try:
            self.sent = VllmSampler.publish_all(self.members, named_tensors, version)
        except WorkerGoneError:
            # Whoever it is does not answer and is replaced; all begin again.
            self.each(lambda member: member.rewind())
            self.sent = VllmSampler.publish_all(self.members, self._weights(), version)
        self.version = version

    def each(self, call: Callable[[VllmSampler], T]) -> list[T]:
        """What `call` returns of each member, or of whoever has taken its place."""
        told = []
        for n in range(len(self.members)):
            try:
                told.append(call(self.members[n]))
            except WorkerGoneError as gone:
                self._replace(n, gone)
                told.append(call(self.members[n]))
        return told

    def sleep(self) -> None:
        self.each(lambda member: member.sleep())

    def wake(self, tags: Sequence[str] = ("weights", "cache")) -> None:
        self.each(lambda member: member.wake(tags))

    def metrics(self, seconds: float) -> dict[str, float]:
        """Of the last `seconds`: the share in which no engine had anything to do, and the engines replaced."""
        told = {"perf/engine_idle": 1 - self.busy_s / seconds, "errors/engines_lost": float(self.restarts)}
        self.busy_s, self.restarts = 0.0, 0
        return told

    def close(self) -> None:
        failed = list[BaseException]()
        for member in self.members:
            try:
                member.close()
            except BaseException as error:
                failed.append(error)
        self._on_close()
        if failed:
            raise failed[0]

    # --- inside ------------------------------------------------------------------------------------------

    def _submit(self, n: int, requests: Sequence[Request]) -> None:
        # Where the member is gone by now, its replacement is given these with all else that ran there.
        self._safely(n, lambda member: member.submit(requests))

    def _known(self, completions: Sequence[Completion]) -> list[Completion]:
        """Completions by the places that their requests were made with."""
        done = []
        for completion in completions:
            running = self._running[completion.request_id]
            place = running.places[completion.index]
            running.out.remove(place)
            if not running.out:
                del self._running[completion.request_id]
            done.append(replace(completion, index=place))
        if done and not self._running:
            self.busy_s += time.perf_counter() - self._since
        self._lost = 0 if done else self._lost
        return done

    def _safely(self, n: int, call: Callable[[VllmSampler], T]) -> T | None:
        """What `call` returns; None where the member was lost, and another one has taken its place."""
        try:
            return call(self.members[n])
        except WorkerGoneError as gone:
            self._replace(n, gone)
            return None

    def _replace(self, n: int, gone: WorkerGoneError) -> None:
        self._lost += 1
        if self._lost > MOST_LOST:
            raise RunError(f"{self._lost} times in a row an engine was lost at once: {gone}")
        self.restarts += 1
        console.print(f"{gone}\nanother one takes its place", markup=False, soft_wrap=True)
        with suppress(RunError):
            self.members[n].close()
        self.members[n] = fresh = self._start(n)
        try:
            VllmSampler.publish_all([fresh], self._weights(), self.version)
        except WorkerGoneError:
            # Either it is gone too, or what was lost is on the way to it and is made again.
            fresh.rewind()
            VllmSampler.publish_all([fresh], self._weights(), self.version)
        self.prove(fresh)
        again = list[Request]()
        for running in self._running.values():
            if running.member == n:
                running.places = tuple(sorted(running.out))
                keys = tuple(running.request.keys[place] for place in running.places)
                again.append(replace(running.request, keys=keys))
        fresh.submit(again)
