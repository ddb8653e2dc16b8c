"""The DeepSpeed trainer as the loop sees it: ranks in processes of their own, all asked for the same at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from k2rl.batch import Batch
from k2rl.cluster.worker import Worker, ask, ask_all, close_all
from k2rl.engines.shared_memory import Bucket, Inbox
from k2rl.errors import RunError
from k2rl.trainers.deepspeed_rank import share_file


class DeepSpeedTrainer:
    """See the module. Each worker hosts a `deepspeed_rank.Rank`, in the order of their ranks.

    Raises:
        UserError: the model can't be loaded there, or the optimizer can't be had.
    """

    def __init__(self, ranks: Sequence[Worker], zero_stage: int) -> None:
        self.ranks, self._stage = ranks, zero_stage
        ask_all(ranks, "start", ask(ranks[0], "meeting_point", ranks[0].address))

    def step(self, batch: Batch, *, lr: float) -> dict[str, float]:
        told: dict[str, float] = ask_all(self.ranks, "step", batch, lr)[0]
        return told

    def log_probs(self, batch: Batch) -> list[NDArray[np.float32]]:
        found = dict(row for own in ask_all(self.ranks, "log_probs", batch) for row in own)
        return [found[row] for row in range(len(found))]

    def named_tensors(self) -> Weights:
        return Weights(self.ranks, trained=False)

    def save(self, folder: Path) -> None:
        """All ranks write into it: across machines it has to be on a disk that they share."""
        ask_all(self.ranks, "save", str(folder.absolute()))

    def load(self, folder: Path) -> None:
        ask_all(self.ranks, "load", str(folder.absolute()))

    @property
    def files(self) -> frozenset[str]:
        count = len(self.ranks)
        return frozenset({"weights.safetensors", *(share_file(self._stage, n, count) for n in range(count))})

    def release(self) -> None:
        ask_all(self.ranks, "release")

    @torch.no_grad()
    def bring_home(self, model: Any) -> None:
        own = dict(model.named_parameters())
        for name, tensor in Weights(self.ranks, trained=True):
            own[name].copy_(tensor)

    def close(self) -> None:
        # A rank that is lost keeps the others waiting in a collective: they end with their processes.
        with suppress(RunError):
            ask_all(self.ranks, "close")
        close_all(self.ranks)


class Weights(Iterable[tuple[str, torch.Tensor]]):
    """The ranks' weights, bucket by bucket in shared memory. What an iteration gives is a view of it, good until the
    next."""

    def __init__(self, ranks: Sequence[Worker], trained: bool) -> None:
        self._ranks, self._trained = ranks, trained

    def buckets(self) -> Iterator[Bucket]:
        ask_all(self._ranks, "begin_buckets", self._trained)
        while (told := ask_all(self._ranks, "next_bucket")[0])[0]:
            yield told[1]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        inbox = Inbox()
        try:
            for bucket in self.buckets():
                yield from inbox.read(bucket)
        finally:
            inbox.close()
