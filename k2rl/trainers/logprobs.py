"""A model's log-probs of given tokens, with gradients: packed without padding where the model can, else padded.

Packed, logits are computed in chunks that are computed again for the backward pass, so that memory does not grow with
the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from k2rl.batch import Batch, Example, TextBatch, text_batch
from k2rl.models import partial_attention
from k2rl.trainers import packing

CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Logits held at once: 16 MiB on a CPU, where larger chunks are no faster, 256 MiB on a GPU."""


class TokenLogProbs:
    """Log-probs of a micro-batch's masked-in tokens under `model`.

    `packed` says which way. Packing needs attention that transformers lets us replace, full in every layer, and logits
    that are the head's output as it is; that is tried out once on a few tokens.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.packed = False
        self.chunk = CHUNK.get(model.device.type, CHUNK["cpu"])
        config = model.config.get_text_config()
        if getattr(model, "_supports_attention_backend", False) and not partial_attention(config):
            self.packed = self._packing_agrees()

    def __call__(self, part: Batch | TextBatch) -> torch.Tensor:
        """(B, L) log-probs at each token's temperature, 0 where the mask is 0. Needs right-padded rows."""
        # Token t is predicted at t - 1; nothing predicts the first.
        asked = part.mask_B_L[:, 1:].bool()
        targets_N = part.tokens_B_L[:, 1:][asked].to(self.model.device)
        temperatures_N = None
        if isinstance(part, Batch):
            temperatures_N = part.temperatures_B_L[:, 1:][asked].to(self.model.device)
        of = self._packed if self.packed else self._padded
        logprobs_N = of(part, asked, targets_N, temperatures_N)
        spread = logprobs_N.new_zeros(asked.shape).masked_scatter(asked.to(logprobs_N.device), logprobs_N)
        return torch.nn.functional.pad(spread, (1, 0))

    def _packed(
        self,
        part: Batch | TextBatch,
        asked: torch.Tensor,
        targets_N: torch.Tensor,
        temperatures_N: torch.Tensor | None,
    ) -> torch.Tensor:
        layout = packing.pack(part.tokens_B_L, part.lengths_B, part.prompts_B, part.prompt_lengths_B)
        device = self.model.device
        places_N = layout.index_B_L[:, :-1][asked].to(device)
        hidden = packing.hidden_states(self.model, packing.to(layout, device))
        head = self.model.get_output_embeddings()
        inputs = [hidden.index_select(0, places_N), targets_N]
        if temperatures_N is not None:
            inputs.append(temperatures_N)
        rows = max(self.chunk // head.weight.shape[0], 1)
        if len(targets_N) <= rows:
            return _target_logprobs(head, *inputs)
        if type(head) is torch.nn.Linear and head.bias is None:
            arguments = (inputs[0], head.weight, targets_N, temperatures_N, rows)
            found: torch.Tensor = _InChunks.apply(*arguments)
            return found
        chunks = zip(*(torch.split(x, rows) for x in inputs), strict=True)
        return torch.cat([checkpoint(_target_logprobs, head, *chunk, use_reentrant=False) for chunk in chunks])

    def _padded(
        self,
        part: Batch | TextBatch,
        asked: torch.Tensor,
        targets_N: torch.Tensor,
        temperatures_N: torch.Tensor | None,
    ) -> torch.Tensor:
        """Right-padded rows need no mask: causal attention does not look there. Logits of the first asked-for column
        on."""
        first = int(asked.any(0).int().argmax())
        keep = torch.arange(first, asked.shape[1], device=self.model.device)
        logits = self.model(
            input_ids=part.tokens_B_L.to(self.model.device), use_cache=False, logits_to_keep=keep
        ).logits
        rows, columns = (x.to(logits.device) for x in asked[:, first:].nonzero(as_tuple=True))
        return _logprobs_of(logits[rows, columns], targets_N, temperatures_N)

    def _packing_agrees(self) -> bool:
        if isinstance(next(self.model.parameters()), FakeTensor):  # memory.py's: there are no numbers to compare
            self.model.set_attn_implementation(packing.ATTENTION)
            return True
        text = text_batch([Example((1, 2, 3, 4), 1), Example((5, 6, 7), 1)], 1.0, 0)
        with torch.no_grad():
            padded = self(text)
            before = self.model.config._attn_implementation
            self.model.set_attn_implementation(packing.ATTENTION)
            self.packed = True
            agrees = torch.allclose(self(text), padded, rtol=0.02, atol=1e-3 if padded.dtype == torch.float32 else 0.1)
        if not agrees:
            self.model.set_attn_implementation(before)
        return agrees


class _InChunks(torch.autograd.Function):
    """Log-probs (N,) of targets under hidden states (N, D) and a head (V, D), `rows` of them at a time.

    Its own backward pass, because autograd would make a gradient of the head for each chunk and hold three.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_N_D: torch.Tensor,
        head_V_D: torch.Tensor,
        targets_N: torch.Tensor,
        temperatures_N: torch.Tensor | None,
        rows: int,
    ) -> torch.Tensor:
        values, totals = [], []
        for part in _parts(len(targets_N), rows):
            logits = _scaled_logits(hidden_N_D, head_V_D, temperatures_N, part)
            totals.append(logits.logsumexp(-1))
            values.append(logits.gather(-1, targets_N[part, None])[:, 0] - totals[-1])
        ctx.save_for_backward(hidden_N_D, head_V_D, targets_N, temperatures_N, torch.cat(totals))
        ctx.rows = rows
        return torch.cat(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_N_D, head_V_D, targets_N, temperatures_N, totals_N = ctx.saved_tensors
        for_hidden = torch.empty_like(hidden_N_D)
        for_head = torch.zeros_like(head_V_D) if ctx.needs_input_grad[1] else None
        if temperatures_N is not None:
            grad_N = grad_N / temperatures_N
        for part in _parts(len(targets_N), ctx.rows):
            logits = _scaled_logits(hidden_N_D, head_V_D, temperatures_N, part)
            # d logprob / d logits = onehot(target) - softmax
            slope = logits.sub_(totals_N[part, None]).exp_().mul_(-grad_N[part, None])
            slope.scatter_add_(-1, targets_N[part, None], grad_N[part, None])
            slope = slope.to(head_V_D.dtype)
            torch.mm(slope, head_V_D, out=for_hidden[part])
            if for_head is not None:
                for_head.addmm_(slope.T, hidden_N_D[part])
        return for_hidden, for_head, None, None, None


def _parts(count: int, rows: int) -> list[slice]:
    return [slice(at, at + rows) for at in range(0, count, rows)]


def _scaled_logits(
    hidden_N_D: torch.Tensor, head_V_D: torch.Tensor, temperatures_N: torch.Tensor | None, part: slice
) -> torch.Tensor:
    logits = torch.mm(hidden_N_D[part], head_V_D.T).float()
    return logits if temperatures_N is None else logits.div_(temperatures_N[part, None])


def _target_logprobs(
    head: torch.nn.Module, hidden_N_D: torch.Tensor, targets_N: torch.Tensor, temperatures_N: torch.Tensor | None = None
) -> torch.Tensor:
    return _logprobs_of(head(hidden_N_D), targets_N, temperatures_N)


def _logprobs_of(
    logits_N_V: torch.Tensor, targets_N: torch.Tensor, temperatures_N: torch.Tensor | None
) -> torch.Tensor:
    logits_N_V = logits_N_V.float()
    if temperatures_N is not None:
        logits_N_V = logits_N_V / temperatures_N[:, None]
    return -torch.nn.functional.cross_entropy(logits_N_V, targets_N, reduction="none")
