"""What a trainer differentiates: a micro-batch's loss, with statistics that add up over micro-batches and ranks."""

from __future__ import annotations

import torch

from k2rl.batch import Batch, TextBatch
from k2rl.losses import LossInputs, Objective
from k2rl.losses.ptx import ptx
from k2rl.trainers.gradients import Terms
from k2rl.trainers.logprobs import TokenLogProbs


def policy_terms(logprobs: TokenLogProbs, objective: Objective, part: Batch) -> Terms:
    """The objective's loss of rollouts."""
    logprobs_B_L = logprobs(part)
    device = logprobs_B_L.device
    inputs = LossInputs(
        logprobs_B_L,
        part.old_logprobs_B_L.to(device),
        part.mask_B_L.to(device),
        part.advantages_B.to(device),
        part.coefficients_B.to(device),
    )
    loss, stats = objective.loss(inputs)
    return loss, {"loss/policy": loss.detach(), **{f"loss/{k}": v for k, v in stats.items()}}


def text_terms(logprobs: TokenLogProbs, name: str, part: TextBatch) -> Terms:
    """The next-token loss of texts, called `name`."""
    loss = text_loss(logprobs, part)
    return loss, {f"loss/{name}": loss.detach()}


def text_loss(logprobs: TokenLogProbs, text: TextBatch) -> torch.Tensor:
    """The PTX (or SFT) loss of a micro-batch of texts."""
    logprobs_B_L = logprobs(text)
    device = logprobs_B_L.device
    return ptx(logprobs_B_L, text.mask_B_L.to(device), text.coefficients_B.to(device))
