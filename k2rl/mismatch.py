"""How far the engine's log-probs are from the trainer's own, and a correction for it.

    mini_batches, metrics = measured(mini_batches, trainer, sampler, config)

Before an iteration's first update the trainer is asked for its own log-probs of what the engine sampled. On tokens of
the present weights the two differ by rounding and kernels, or because something is wrong. Tokens of older weights, in
rollouts that were paused, are stale, which is another matter: they are counted apart.

The correction is truncated importance sampling between engine and trainer (Yao et al., "Your Efficient RL Framework
Secretly Brings You Off-Policy RL Training", 2025; of whole sequences: Liu, Li et al., "When Speed Kills Stability",
2025). What was sampled comes from the engine's distribution mu, while an objective speaks of pi_old, the policy as the
iteration begins. So a rollout's coefficient is multiplied by

    w = min(cap, prod_t pi_old(y_t) / mu(y_t))

over all its policy tokens, and log pi_old takes the place of log mu, fixed for the iteration's updates. One weight per
rollout, as K2's log-ratio is one per response: but for the cap, the expected gradient of K2's first update is then that
of samples from pi_old, which weights of single tokens do not give. Stale tokens are in the product like all others:
they too were sampled by something else than pi_old. The price is variance, which grows with a response's length.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from k2rl.batch import Batch

if TYPE_CHECKING:
    from k2rl.protocols import Sampler, Trainer
    from k2rl.recipe import TrainerConfig

LogProbs = Sequence[NDArray[np.float32]]
"""Per rollout of a batch, the trainer's own log-probs of its policy tokens (see `Trainer.log_probs`)."""


def measured(
    batches: Iterable[Batch], trainer: Trainer, sampler: Sampler, config: TrainerConfig
) -> tuple[Iterable[Batch], dict[str, float]]:
    """An iteration's mini-batches, corrected where `config` asks for it, and how engine and trainer differ on them.

    A sampler that generates with the trainer's own module (`shared`) differs by rounding: without a correction the
    mini-batches are passed on as they are, and nothing is computed.
    """
    if getattr(sampler, "shared", False) and config.correction == "none":
        return batches, {}
    started = time.perf_counter()
    batches = list(batches)
    if not batches:
        return batches, {}
    own = [trainer.log_probs(batch) for batch in batches]
    metrics = gaps(batches, own, sampler.version, config.mismatch_bound)
    if config.correction == "truncated":
        weighed = [truncated(*pair, config.correction_cap) for pair in zip(batches, own, strict=True)]
        batches = [batch for batch, _ in weighed]
        metrics |= weights(torch.cat([log_weights_B for _, log_weights_B in weighed]), config.correction_cap)
    return batches, metrics | {"time/train_mismatch": time.perf_counter() - started}


def gaps(batches: Sequence[Batch], own: Sequence[LogProbs], version: int, bound: float) -> dict[str, float]:
    """By how much log pi differs between the trainer and the engine, over the policy tokens of `version`: mean and
    largest absolute difference, share of tokens above `bound`, and KL(engine || trainer) per token, estimated by
    ratio - 1 - log ratio. `stale` is the share of tokens of other versions; where it is 1 the rest is left out."""
    masks = [batch.mask_B_L.bool() for batch in batches]
    engine_N = np.concatenate([b.old_logprobs_B_L[m].numpy() for b, m in zip(batches, masks, strict=True)])
    fresh_N = np.concatenate([b.versions_B_L[m].numpy() == version for b, m in zip(batches, masks, strict=True)])
    own_N = np.concatenate([row for rows in own for row in rows])
    logratio_N = own_N[fresh_N].astype(np.float64) - engine_N[fresh_N]
    if not len(logratio_N):
        return {"mismatch/stale": 1.0}
    gap_N = np.abs(logratio_N)
    return {
        "mismatch/mean": float(gap_N.mean()),
        "mismatch/max": float(gap_N.max()),
        "mismatch/over": float((gap_N > bound).mean()),
        "mismatch/kl": float((np.expm1(logratio_N) - logratio_N).mean()),
        "mismatch/stale": float(1 - fresh_N.mean()),
    }


def truncated(batch: Batch, own: LogProbs, cap: float) -> tuple[Batch, torch.Tensor]:
    """The batch with weighted coefficients and the trainer's log-probs as the old ones; and the log of each rollout's
    weight before it was cut at `cap`: (B,)."""
    old_B_L = torch.zeros_like(batch.old_logprobs_B_L)
    old_B_L[batch.mask_B_L.bool()] = torch.from_numpy(np.concatenate(own)).to(old_B_L.dtype)
    log_weights_B = (old_B_L.double() - batch.old_logprobs_B_L).sum(-1)
    # Cut before exp, which would overflow.
    weights_B = log_weights_B.clamp(max=math.log(cap)).exp().to(batch.coefficients_B.dtype)
    return replace(batch, old_logprobs_B_L=old_B_L, coefficients_B=batch.coefficients_B * weights_B), log_weights_B


def weights(log_weights_B: torch.Tensor, cap: float) -> dict[str, float]:
    """Mean and least weight of an iteration's rollouts, and the share of them that `cap` cut."""
    weights_B = log_weights_B.clamp(max=math.log(cap)).exp()
    return {
        "correction/mean": float(weights_B.mean()),
        "correction/min": float(weights_B.min()),
        "correction/cut": float((log_weights_B > math.log(cap)).double().mean()),
    }
