"""Continuous generation with any full-attention transformers causal LM, in this process, on CPU or GPU.

Each token is drawn with one uniform keyed by (sample, position), so a sample does not depend on its neighbours, nor on
which decoder has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from k2rl.models import one_thread_workers, refuse_partial_attention
from k2rl.protocols import Completion, Request
from k2rl.samplers.decoder import Decoder, empty
from k2rl.samplers.labels import score_labels

_FEW = 16
"""Rows that are no longer worth several decoders: what a step costs whatever its rows would be paid by each."""


class TorchSampler:
    """See the module.

    Args:
        model: a causal LM whose layers all have full attention; may be the trainer's own module.
        pad_id: any valid id.
        slots: rows that decode at once.
        shared: `model` is the trainer's own module, adapters and all: its weights are new without being published.
        workers: decoders, each with a thread and a share of the slots. None: as many as torch has threads, for a
            small model on a CPU; else 1.

    Raises:
        UserError: the model has sliding-window or linear-attention layers.
    """

    def __init__(
        self, model: Any, pad_id: int, slots: int = 256, shared: bool = False, workers: int | None = None
    ) -> None:
        refuse_partial_attention(model.config.get_text_config())
        self.model = model
        self.pad_id, self.slots, self.shared = pad_id, slots, shared
        workers = min(workers or one_thread_workers(model), slots)
        self._waiting: deque[Request] = deque()
        self._decoders = [Decoder(model, pad_id, slots // workers + (n < slots % workers)) for n in range(workers)]
        self._threads = ThreadPoolExecutor(workers, "k2rl-decode", _one_thread) if workers > 1 else None

    @property
    def version(self) -> int:
        return self._decoders[0].version

    @version.setter
    def version(self, version: int) -> None:
        for decoder in self._decoders:
            decoder.version = version

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    # --- the protocol ----------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting.extend(requests)

    def poll(self) -> list[Completion]:
        """Let waiting samples in, then generate one token for every active row."""
        self._hand_out()
        busy = [d for d in self._decoders if d.load]
        if self._threads is None:
            return [c for d in busy for c in d.step()]
        return [c for done in self._threads.map(Decoder.step, busy) for c in done]

    def abort(self, ids: Iterable[str] | None = None) -> list[Completion]:
        wanted = None if ids is None else set(ids)

        def hit(request: Request) -> bool:
            return wanted is None or request.id in wanted

        partials = [c for d in self._decoders for c in d.abort(hit)]
        partials += [empty(r, j, self.version) for r in self._waiting if hit(r) for j in range(r.n)]
        self._waiting = deque(r for r in self._waiting if not hit(r))
        return partials

    def score_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> NDArray[np.float32]:
        """What prompts have in common at their beginning is computed once."""
        workers = len(self._decoders)
        return score_labels(self.model, prompts, label_ids, self.pad_id, self.slots, self._threads, workers)

    def publish(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Copy the weights, unless they are shared with the trainer.

        Raises:
            ValueError: a tensor is unknown to the model or has another shape, or samples are under way.
        """
        if self._waiting or any(d.load for d in self._decoders):
            raise ValueError("publish while samples are under way: poll them to the end or abort them first")
        if not self.shared:
            self._copy(named_tensors)
        self.version = version

    def sleep(self) -> None:
        """Free the cache; the weights stay, they are the trainer's."""
        for decoder in self._decoders:
            if not decoder.rows:
                decoder.free_cache()

    def wake(self, tags: Sequence[str] = ("weights", "cache")) -> None:
        """The cache comes back by itself."""

    def close(self) -> None:
        self.abort()
        self.sleep()
        if self._threads is not None:
            self._threads.shutdown()

    # --- inside ------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Give waiting requests to the decoders with the least to do, and the last few rows to one of them."""
        while self._waiting:
            least = min(self._decoders, key=lambda d: d.load)
            if least.load >= least.slots + least.slots // 8:
                return
            least.waiting.append(self._waiting.popleft())
        busy = [d for d in self._decoders if d.load]
        if len(busy) > 1 and all(d.load == d.rows for d in busy):
            most = max(busy, key=lambda d: d.rows)
            if sum(d.rows for d in busy) <= min(_FEW, most.slots):
                for decoder in busy:
                    if decoder is not most:
                        most.adopt(decoder)

    @torch.no_grad()
    def _copy(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, tensor in named_tensors:
            if name not in own or own[name].shape != tensor.shape:
                raise ValueError(f"published tensor {name} {tuple(tensor.shape)} does not fit the sampler's model")
            own[name].copy_(tensor)


def _one_thread() -> None:
    torch.set_num_threads(1)
