"""Updates on texts alone, with an optimizer of their own: the critic's step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from k2rl.batch import TextBatch, micro_batches
from k2rl.errors import UserError
from k2rl.optim.model_optimizer import ModelOptimizer
from k2rl.recipe import OptimConfig
from k2rl.trainers.gradients import Gradients, Terms
from k2rl.trainers.logprobs import TokenLogProbs
from k2rl.trainers.terms import text_loss
from k2rl.trainers.torch_trainer import read_tensors

FILE = "critic.safetensors"


class TextTrainer:
    """Trains a model, which may be another trainer's as well (`shared`): gradients are cleared before and after, and
    what is saved is the optimizer's state alone."""

    def __init__(
        self, model: Any, optim: OptimConfig, micro_batch_tokens: int, workers: int | None = 1, shared: bool = False
    ) -> None:
        self.model, self.micro_batch_tokens, self.shared = model, micro_batch_tokens, shared
        self.token_logprobs = TokenLogProbs(model)
        self.gradients = Gradients(model, workers)
        self.optimizer = ModelOptimizer(model, optim)

    def step(self, batch: TextBatch, *, lr: float) -> dict[str, float]:
        """One update on the sum of coefficient x weight x negative log-prob."""
        self.optimizer.zero_grad()
        totals: dict[str, torch.Tensor] = {}
        parts = micro_batches(batch, self.micro_batch_tokens, self.token_logprobs.packed)
        self.gradients.add(parts, self._terms, totals)
        norm = self.optimizer.update(lr)
        self.optimizer.zero_grad()
        return {"loss": float(totals["loss"]), "grad_norm": norm}

    def save(self, folder: Path) -> None:
        weights = {} if self.shared else {f"weight.{n}": p.detach() for n, p in self._trained()}
        save_file({k: t.contiguous() for k, t in (weights | self.optimizer.tensors()).items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        tensors = read_tensors(folder / FILE)
        self.optimizer.reset()
        try:
            if not self.shared:
                with torch.no_grad():
                    for name, parameter in self._trained():
                        parameter.copy_(tensors[f"weight.{name}"])
            self.optimizer.load(tensors)
        except KeyError as missing:
            raise UserError(f"{folder / FILE}: of a run with other critic.weights: no {missing}") from None

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def close(self) -> None:
        self.gradients.close()

    def _terms(self, part: TextBatch) -> Terms:
        loss = text_loss(self.token_logprobs, part)
        return loss, {"loss": loss.detach()}
