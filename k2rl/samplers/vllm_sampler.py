"""vLLM behind the Sampler protocol, its engine in a process of its own.

What leaves here and what comes back are token ids; log-probs are those at the temperature that was sampled at. Samples
are seeded one by one, so they don't depend on their neighbours but for rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from k2rl.engines.process import EngineProcess
from k2rl.engines.shared_memory import Outbox
from k2rl.engines.vllm_engine import EngineConfig
from k2rl.errors import RunError
from k2rl.protocols import Completion, Request

BUCKET = 512 << 20
"""Bytes of weights under way at a time."""
_WAIT_S = 0.05


class VllmSampler:
    """See the module.

    Args:
        names: the full set of the policy's weights, by transformers' names. What is published must be these.
        module: what the engine's process runs, see `EngineProcess`.

    Raises:
        RunError: the engine could not be started.
    """

    def __init__(
        self,
        config: EngineConfig,
        names: Iterable[str],
        bucket_bytes: int = BUCKET,
        module: str = "k2rl.engines.process",
    ) -> None:
        self._names = frozenset(names)
        self._outbox = Outbox(bucket_bytes)
        self._open = 0
        self.version = 0
        self.engine = EngineProcess(config, module)

    def submit(self, requests: Sequence[Request]) -> None:
        self._open += sum(request.n for request in requests)
        self.engine.tell("submit", list(requests))

    def poll(self) -> list[Completion]:
        if not self._open:
            return []
        return self._counted(self.engine.completions(_WAIT_S))

    def abort(self, ids: Iterable[str] | None = None) -> list[Completion]:
        stopped = self.engine.ask("abort", None if ids is None else list(ids))
        return self._counted([*self.engine.completions(0.0), *stopped])

    def score_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> NDArray[np.float32]:
        if self._open:
            raise ValueError("score_labels while samples are under way: poll them to the end or abort them first")
        if not prompts:
            return np.empty((0, len(label_ids)), dtype=np.float32)
        scores: NDArray[np.float32] = self.engine.ask("score_labels", [list(p) for p in prompts], list(label_ids))
        return scores

    def publish(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Send the weights over.

        Raises:
            ValueError: samples are under way.
            RunError: a tensor is missing, or is none of the policy's. The engine is of no use then.
        """
        if self._open:
            raise ValueError("publish while samples are under way: poll them to the end or abort them first")
        self.engine.ask("begin_update")
        sent = set[str]()
        for bucket in self._outbox.fill(named_tensors):
            self.engine.ask("load", bucket)
            sent |= {entry.name for entry in bucket.entries}
        if wrong := sorted(sent ^ self._names):
            what = "was not sent" if wrong[0] in self._names else "is none of the policy's"
            raise RunError(f"weights of version {version}: tensor {wrong[0]} {what} ({len(wrong)} such tensors)")
        self.engine.ask("finish_update", version)
        self.version = version

    def differing(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, float]:
        """Which tensors the engine did not hold, and by how much (infinite: nothing of it); it holds them then."""
        found: dict[str, float] = self.engine.ask("differing_heads")
        for bucket in self._outbox.fill(named_tensors):
            found |= self.engine.ask("differing", bucket)
        return found

    def sleep(self) -> None:
        self.engine.ask("sleep")

    def wake(self, tags: Sequence[str] = ("weights", "cache")) -> None:
        """Raises nothing on a CPU, where nothing sleeps."""
        self.engine.ask("wake", ["kv_cache" if tag == "cache" else tag for tag in tags])

    def close(self) -> None:
        self.engine.close()
        self._outbox.close()

    def _counted(self, completions: list[Completion]) -> list[Completion]:
        self._open -= len(completions)
        return completions
