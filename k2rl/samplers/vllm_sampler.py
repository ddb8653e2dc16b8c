"""vLLM behind the Sampler protocol, its engine in a process of its own.

What leaves here and what comes back are token ids; log-probs are those at the temperature that was sampled at. Samples
are seeded one by one, so they don't depend on their neighbours but for rounding. `Publisher` sends weights to one
engine or several at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from k2rl.cluster.worker import Worker, ask, ask_all, asked_each
from k2rl.engines.relay import Relays
from k2rl.engines.shared_memory import BUCKET, Bucket, Bucketed, Outbox
from k2rl.errors import RunError
from k2rl.protocols import Completion, Request

_WAIT_S = 0.05


class Publisher:
    """Sends weights to engines: packed once into shared memory, and taken from there by all; on other machines
    through a relay.

    Args:
        names: the full set of the policy's weights, by transformers' names. What is published must be these.
    """

    def __init__(self, names: Iterable[str], bucket_bytes: int = BUCKET) -> None:
        self._names, self._outbox, self._relays = frozenset(names), Outbox(bucket_bytes), Relays(bucket_bytes)

    def __call__(self, engines: Sequence[Worker], tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> int:
        """Send `tensors` and stamp them with `version`; how many bytes they are.

        Raises:
            RunError: a tensor is missing, or is none of the policy's. The engines are of no use then.
        """
        ask_all(engines, "begin_update")
        sent, size = set[str](), 0
        loaded: Callable[[], object] = list
        try:
            for bucket in self.buckets(tensors):
                # While this bucket was made and sent the one before was loaded; the next will take its place.
                there = self._relays.at(engines, bucket)
                before, loaded = loaded, list
                before()
                loaded = asked_each(engines, "load", [(one,) for one in there])
                sent |= {entry.name for entry in bucket.entries}
                size += sum(entry.end - entry.offset for entry in bucket.entries)
        except RunError:
            # What goes wrong on the way to some is what happened, not what the others make of it.
            under_way, loaded = loaded, list
            with suppress(RunError):
                under_way()
            self._relays.close()
            raise
        finally:
            loaded()
        if wrong := sorted(sent ^ self._names):
            what = "was not sent" if wrong[0] in self._names else "is none of the policy's"
            raise RunError(f"weights of version {version}: tensor {wrong[0]} {what} ({len(wrong)} such tensors)")
        ask_all(engines, "finish_update", version)
        return size

    def buckets(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Bucket]:
        """The tensors in shared memory, some at a time."""
        return tensors.buckets() if isinstance(tensors, Bucketed) else self._outbox.fill(tensors)

    def buckets_at(self, engine: Worker, tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Bucket]:
        """The same as one engine finds them."""
        return (self._relays.at([engine], bucket)[0] for bucket in self.buckets(tensors))

    def close(self) -> None:
        self._outbox.close()
        self._relays.close()


class VllmSampler:
    """See the module. `engine` hosts an `engines.vllm_engine.Engine`."""

    def __init__(self, engine: Worker, publisher: Publisher) -> None:
        self.engine, self._publisher = engine, publisher
        self._open = 0
        self.version = 0

    def submit(self, requests: Sequence[Request]) -> None:
        self._open += sum(request.n for request in requests)
        self.engine.tell("submit", list(requests))

    def poll(self) -> list[Completion]:
        if not self._open:
            return []
        return self._counted(self.engine.produced(_WAIT_S))

    def abort(self, ids: Iterable[str] | None = None) -> list[Completion]:
        stopped = ask(self.engine, "abort", None if ids is None else list(ids))
        return self._counted([*self.engine.produced(0.0), *stopped])

    def score_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> NDArray[np.float32]:
        self.ask_labels(prompts, label_ids)
        return self.told_labels()

    def ask_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> bool:
        """The first half of `score_labels`, which returns at once; `told_labels` is the second."""
        if self._open:
            raise ValueError("score_labels while samples are under way: poll them to the end or abort them first")
        self._asked = (len(prompts), len(label_ids))
        if prompts:
            self.engine.send("score_labels", [list(p) for p in prompts], list(label_ids))
        return True

    def told_labels(self) -> NDArray[np.float32]:
        if not self._asked[0]:
            return np.empty(self._asked, dtype=np.float32)
        scores: NDArray[np.float32] = self.engine.receive()
        return scores

    def publish(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """See `publish_all`."""
        self.publish_all([self], named_tensors, version)

    @staticmethod
    def publish_all(
        samplers: Sequence[VllmSampler], named_tensors: Iterable[tuple[str, torch.Tensor]], version: int
    ) -> int:
        """Send the weights to several at once; how many bytes these are.

        Raises:
            ValueError: samples are under way.
            RunError: a tensor is missing, or is none of the policy's. The engines are of no use then.
        """
        if any(sampler._open for sampler in samplers):
            raise ValueError("publish while samples are under way: poll them to the end or abort them first")
        size = samplers[0]._publisher([sampler.engine for sampler in samplers], named_tensors, version)
        for sampler in samplers:
            sampler.version = version
        return size

    def differing(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, float]:
        """Which tensors the engine did not hold, and by how much (infinite: nothing of it); it holds them then."""
        found: dict[str, float] = ask(self.engine, "differing_heads")
        for bucket in self._publisher.buckets_at(self.engine, named_tensors):
            found |= ask(self.engine, "differing", bucket)
        return found

    def rewind(self) -> None:
        """Forget an update that has begun and not ended: the next one begins anew."""
        ask(self.engine, "rewind")

    def sleep(self) -> None:
        ask(self.engine, "sleep")

    def wake(self, tags: Sequence[str] = ("weights", "cache")) -> None:
        """Raises nothing on a CPU, where nothing sleeps."""
        ask(self.engine, "wake", ["kv_cache" if tag == "cache" else tag for tag in tags])

    def close(self) -> None:
        self.engine.close()

    def _counted(self, completions: list[Completion]) -> list[Completion]:
        self._open -= len(completions)
        return completions
