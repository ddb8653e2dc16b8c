"""A rank that also tells the gradients of its last update, and can be made to fail; run by test_deepspeed."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from k2rl.recipe import OptimConfig, TrainerConfig
from k2rl.trainers import deepspeed_settings
from k2rl.trainers.deepspeed_rank import Rank
from k2rl.trainers.deepspeed_settings import settings


def _sharding_all(trainer: TrainerConfig, optim: OptimConfig, dtype: torch.dtype) -> dict[str, Any]:
    """By default small weights stay whole at stage 3, which all of nano's are."""
    told = settings(trainer, optim, dtype)
    told["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    return told


class Probed(Rank):
    def start(self, meeting_point: str) -> None:
        deepspeed_settings.settings = _sharding_all
        super().start(meeting_point)
        from deepspeed.utils import safe_get_full_grad

        step = self.engine.step

        def told(*arguments: Any) -> None:
            trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
            self.told = {name: safe_get_full_grad(p).cpu() for name, p in trained}
            step(*arguments)

        self.engine.step = told

    def gradients(self) -> dict[str, torch.Tensor]:
        return self.told

    def whole_weight_bytes(self) -> int:
        """Of the weights that lie here whole."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())

    def die(self) -> None:
        os._exit(9)

    def hang(self) -> None:
        time.sleep(1000)
