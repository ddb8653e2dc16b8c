"""One process, one device: gradient sums over micro-batches, then an update."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from k2rl.batch import Batch, micro_batches, slices, take
from k2rl.errors import UserError
from k2rl.lora import full_weights
from k2rl.losses import Objective
from k2rl.optim.model_optimizer import ModelOptimizer
from k2rl.recipe import OptimConfig
from k2rl.trainers.gradients import Gradients
from k2rl.trainers.logprobs import TokenLogProbs
from k2rl.trainers.terms import policy_terms, text_terms


class TorchTrainer:
    """See the module. The model stays in eval mode: log-probs must not depend on dropout."""

    def __init__(
        self, model: Any, objective: Objective, optim: OptimConfig, micro_batch_tokens: int, workers: int | None = 1
    ) -> None:
        self.model, self.objective, self.config = model, objective, optim
        self.micro_batch_tokens = micro_batch_tokens
        self.token_logprobs = TokenLogProbs(model)
        self.gradients = Gradients(model, workers)
        self.optimizer = ModelOptimizer(model, optim)

    def step(self, batch: Batch, *, lr: float) -> dict[str, float]:
        """One update on L/(2 tau) (or the objective at hand) plus the batch's PTX and critic terms."""
        if self.config.reset_each_iteration and batch.first_of_iteration:
            self.optimizer.reset()
        self.optimizer.zero_grad()
        totals = self.accumulate(batch)
        norm = self.optimizer.update(lr)
        return {k: float(v) for k, v in totals.items()} | {"train/grad_norm": norm, "train/lr": lr}

    def accumulate(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Add the batch's gradients to what is there; statistics, still on the device."""
        totals: dict[str, torch.Tensor] = {}
        limit, packed = self.micro_batch_tokens, self.token_logprobs.packed
        of_policy = partial(policy_terms, self.token_logprobs, self.objective)
        self.gradients.add(micro_batches(batch, limit, packed), of_policy, totals)
        for name, texts in (("ptx", batch.ptx), ("critic", batch.critic)):
            if texts is not None:
                of_texts = partial(text_terms, self.token_logprobs, name)
                self.gradients.add(micro_batches(texts, limit, packed), of_texts, totals)
        return totals

    @torch.no_grad()
    def log_probs(self, batch: Batch) -> list[NDArray[np.float32]]:
        found: dict[int, NDArray[np.float32]] = {}
        for rows in slices(batch, self.micro_batch_tokens, self.token_logprobs.packed):
            part = take(batch, rows)
            logprobs = self.token_logprobs(part).float().cpu()
            for row, values, said in zip(rows.tolist(), logprobs, part.mask_B_L.bool(), strict=True):
                found[row] = values[said].numpy()
        return [found[row] for row in range(len(found))]

    def named_tensors(self) -> Iterable[tuple[str, torch.Tensor]]:
        """All weights by transformers' names, adapters merged; a tied weight appears once."""
        return full_weights(self.model)

    def save(self, folder: Path) -> None:
        """What is trained (with LoRA: the adapters), and the optimizer's state."""
        trained = {n: p.detach().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "weights.safetensors")
        save_file(self.optimizer.tensors(), folder / "optimizer.safetensors")

    def load(self, folder: Path) -> None:
        weights, moments = read_tensors(folder / "weights.safetensors"), read_tensors(folder / "optimizer.safetensors")
        own = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        for name, parameter in own.items():
            if name not in weights or weights[name].shape != parameter.shape:
                found = tuple(weights[name].shape) if name in weights else "nothing"
                raise UserError(
                    f"{folder}: this checkpoint is of another model: {name} is {tuple(parameter.shape)} here and "
                    f"{found} there"
                )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])
        self.optimizer.reset()
        try:
            self.optimizer.load(moments)
        except KeyError as missing:
            raise UserError(f"{folder}: this checkpoint was made with another model.dtype: no {missing}") from None

    @property
    def files(self) -> frozenset[str]:
        return frozenset({"weights.safetensors", "optimizer.safetensors"})

    def release(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def bring_home(self, model: Any) -> None:
        assert model is self.model, "it is trained where it is"

    def close(self) -> None:
        self.gradients.close()


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's file. Raises `UserError` where it is damaged or missing."""
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged or missing ({error}); resume from an older checkpoint") from None
    return tensors
