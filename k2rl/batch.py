"""From scored groups and PTX examples to token tensors, masks and coefficients.

Position t of every tensor speaks about token t: `mask_B_L[b, t]` is 1 where token t was said by the policy (or is
a PTX target), and its log-prob comes from the logits at t - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, TypeVar

import numpy as np
import torch

from k2rl.losses import Objective
from k2rl.types import ScoredGroup, Segment


@dataclass(frozen=True)
class TextBatch:
    """Texts with target tokens at T = 1: PTX examples, demonstrations, judged pairs. Shapes as in `Batch`; the mask
    holds each target token's weight."""

    tokens_B_L: torch.Tensor
    mask_B_L: torch.Tensor
    lengths_B: torch.Tensor
    prompts_B: torch.Tensor
    prompt_lengths_B: torch.Tensor
    coefficients_B: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """One mini-batch: whole groups, and the PTX texts and judged pairs that go with them.

    Shapes: (B, L) tokens, mask, log-probs of the sampling policy (or those that `mismatch.py` put in their place),
    temperatures (1 where no policy token is), versions of the weights that sampled the policy tokens; (B,) true
    lengths, the number of the prompt (the same for rows that begin with the same `prompt_lengths_B` tokens),
    advantages, coefficients. Right-padded.
    """

    tokens_B_L: torch.Tensor
    mask_B_L: torch.Tensor
    old_logprobs_B_L: torch.Tensor
    temperatures_B_L: torch.Tensor
    versions_B_L: torch.Tensor
    lengths_B: torch.Tensor
    prompts_B: torch.Tensor
    prompt_lengths_B: torch.Tensor
    advantages_B: torch.Tensor
    coefficients_B: torch.Tensor
    ptx: TextBatch | None = None
    critic: TextBatch | None = None
    first_of_iteration: bool = False


@dataclass(frozen=True)
class Example:
    """A text to learn: token ids, of which the first `start` are the prompt.

    `targets` are spans (first, end, weight) of tokens to learn; by default all after the prompt. The first `shared`
    tokens are computed once for all examples of a batch that begin with the same.
    """

    ids: tuple[int, ...]
    start: int
    targets: tuple[tuple[int, int, float], ...] | None = None
    shared: int = 0

    @property
    def spans(self) -> tuple[tuple[int, int, float], ...]:
        return ((self.start, len(self.ids), 1.0),) if self.targets is None else self.targets


def batches(
    groups: Sequence[ScoredGroup],
    objective: Objective,
    updates: int,
    texts: Sequence[TextBatch | None],
    pad_id: int,
    judged: Sequence[TextBatch | None] = (),
) -> Iterator[Batch]:
    """Mini-batches of whole groups, as even as they come; the u-th carries the PTX texts `texts[u]` and, where there
    are any, the judged pairs `judged[u]`.

    Groups are dealt out in turn, so that each mini-batch has the mixture of envs. Fewer groups than updates give
    fewer mini-batches.
    """
    for update in range(min(updates, len(groups))):
        chosen = groups[update::updates]
        coefficients = objective.coefficients([[r.policy_tokens for r in g.rollouts] for g in chosen])
        rollouts = [r for g in chosen for r in g.rollouts]
        yield replace(
            pack(rollouts, pad_id),
            advantages_B=torch.tensor([a for g in chosen for a in g.advantages], dtype=torch.float32),
            coefficients_B=torch.tensor([c for group in coefficients for c in group], dtype=torch.float32),
            ptx=texts[update],
            critic=judged[update] if judged else None,
            first_of_iteration=update == 0,
        )


def text_batch(examples: Sequence[Example], weight: float, pad_id: int) -> TextBatch:
    """Examples with coefficient weight / (target tokens of all of them, each as often as its weight says)."""
    lengths = [len(e.ids) for e in examples]
    tokens = np.full((len(examples), max(lengths)), pad_id, dtype=np.int64)
    mask = np.zeros(tokens.shape, dtype=np.float32)
    prompts: dict[tuple[int, ...], int] = {}
    for b, example in enumerate(examples):
        tokens[b, : lengths[b]] = example.ids
        prompts.setdefault(example.ids[: example.shared] or (-1, b), len(prompts))
        for first, end, share in example.spans:
            mask[b, first:end] = share
    coefficient = weight / max(float(mask.sum()), 1.0)
    return TextBatch(
        torch.from_numpy(tokens),
        torch.from_numpy(mask),
        torch.tensor(lengths),
        torch.tensor([prompts[e.ids[: e.shared] or (-1, b)] for b, e in enumerate(examples)]),
        torch.tensor([e.shared for e in examples]),
        torch.full((len(examples),), coefficient),
    )


T = TypeVar("T", Batch, TextBatch)


def micro_batches(batch: T, max_tokens: int, packed: bool = True) -> Iterator[T]:
    """The batch in the parts that `slices` makes of it."""
    for rows in slices(batch, max_tokens, packed):
        yield take(batch, rows)


def slices(batch: Batch | TextBatch, max_tokens: int, packed: bool = True) -> Iterator[torch.Tensor]:
    """Which rows go together: at most `max_tokens` tokens (but at least one row), rows of a prompt and of like length.

    Counted are the tokens of a forward pass: without padding and each prompt once where rows are `packed` (see
    `trainers/packing.py`), else the padded ones.
    """
    order = _order(batch) if packed else torch.argsort(batch.lengths_B, descending=True, stable=True)
    lengths, prompts, shared = (x[order].tolist() for x in (batch.lengths_B, batch.prompts_B, batch.prompt_lengths_B))
    start = used = 0
    for i, length in enumerate(lengths):
        fresh = i == start or prompts[i] != prompts[i - 1]
        more = length if fresh else length - shared[i]
        if i > start and (used + more if packed else (i + 1 - start) * lengths[start]) > max_tokens:
            yield order[start:i]
            start, used, more = i, 0, length
        used += more
    yield order[start:]


def _order(batch: Batch | TextBatch) -> torch.Tensor:
    """Rows by their prompt, prompts by their longest row, the rows of a prompt by length; all descending."""
    longest = torch.zeros(int(batch.prompts_B.max()) + 1, dtype=torch.int64)
    longest.scatter_reduce_(0, batch.prompts_B, batch.lengths_B, "amax")
    keys = (-batch.lengths_B.numpy(), batch.prompts_B.numpy(), -longest[batch.prompts_B].numpy())
    return torch.from_numpy(np.lexsort(keys))


def take(batch: T, rows: torch.Tensor) -> T:
    """Some rows of a batch, as wide as the longest of them."""
    length = int(batch.lengths_B[rows].max())
    cut: dict[str, object] = {"ptx": None, "critic": None} if isinstance(batch, Batch) else {}
    for f in fields(batch):
        value = getattr(batch, f.name)
        if isinstance(value, torch.Tensor):
            cut[f.name] = value[rows, :length] if value.dim() == 2 else value[rows]
    return type(batch)(**cut)  # type: ignore[arg-type]


class Said(Protocol):
    """A prompt and what came after it, as a `Rollout` has them."""

    @property
    def prompt_ids(self) -> tuple[int, ...]: ...

    @property
    def segments(self) -> tuple[Segment, ...]: ...


def pack(rollouts: Sequence[Said], pad_id: int) -> Batch:
    """Rollouts as tensors, without advantages and coefficients: enough for their log-probs."""
    lengths = [len(r.prompt_ids) + sum(len(s.ids) for s in r.segments) for r in rollouts]
    shape = (len(rollouts), max(lengths))
    tokens = np.full(shape, pad_id, dtype=np.int64)
    mask, old = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    temperatures, versions = np.ones(shape, dtype=np.float32), np.zeros(shape, dtype=np.int32)
    prompts: dict[tuple[int, ...], int] = {}
    for b, rollout in enumerate(rollouts):
        prompts.setdefault(rollout.prompt_ids, len(prompts))
        at = len(rollout.prompt_ids)
        tokens[b, :at] = rollout.prompt_ids
        for segment in rollout.segments:
            end = at + len(segment.ids)
            tokens[b, at:end] = segment.ids
            if segment.source == "policy":
                mask[b, at:end], old[b, at:end] = 1.0, segment.logprobs
                temperatures[b, at:end], versions[b, at:end] = segment.temperature, segment.version
            at = end
    empty = torch.zeros(len(rollouts))
    return Batch(
        torch.from_numpy(tokens),
        torch.from_numpy(mask),
        torch.from_numpy(old),
        torch.from_numpy(temperatures),
        torch.from_numpy(versions),
        torch.tensor(lengths),
        torch.tensor([prompts[r.prompt_ids] for r in rollouts]),
        torch.tensor([len(r.prompt_ids) for r in rollouts]),
        empty,
        empty,
    )
