"""vLLM's weight transfer by shared memory: for a trainer in another process of the same machine, on a CPU too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from k2rl.engines.shared_memory import Bucket, Inbox


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing: the block's name comes with each bucket."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One bucket of weights, by transformers' names."""

    bucket: Bucket


class SharedMemoryEngine(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """The worker's end. `load_weights` copies each tensor to where it belongs, fused or sharded."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._inbox = Inbox()

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """There is nothing to meet for."""

    def start_weight_update(self) -> None:
        """Weights are loaded in place."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        self.model.load_weights(self._inbox.read(update_info.bucket))

    def finish_weight_update(self) -> None:
        """Nothing is left over."""

    def shutdown(self) -> None:
        self._inbox.close()
