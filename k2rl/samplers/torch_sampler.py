"""Continuous generation with any full-attention transformers causal LM, in this process, on CPU or GPU.

All active rows write their next key and value into the same cache column, so a row that enters late simply
starts further right: a prompt of length p occupies the p columns before the current one. Finished rows leave at
once (the last row moves into the gap) and waiting samples enter; a prompt is prefilled once for its whole group.
Each token is drawn with one uniform keyed by (sample, position), so a sample does not depend on its neighbours.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from k2rl import rng
from k2rl.models import refuse_partial_attention
from k2rl.protocols import Completion, Request
from k2rl.repetition import circling
from k2rl.samplers.slot_cache import SlotCache


@dataclass
class _Row:
    """One sample being generated; the last of `ids` has been drawn but not yet fed to the model."""

    request: Request
    index: int
    length: int
    """Tokens in the cache, prompt included."""
    ids: list[int]
    logprobs: list[float]


@dataclass
class _Prefilled:
    """A prompt's keys and values per layer, (heads, length, head size) each, and its next-token logits (V,)."""

    request: Request
    kv: list[tuple[torch.Tensor, torch.Tensor]]
    logits_V: torch.Tensor
    started: int = 0


class TorchSampler:
    """See the module.

    Args:
        model: a causal LM whose layers all have full attention; may be the trainer's own module.
        pad_id: any valid id.
        slots: rows that decode at once.
        shared: `model` is the trainer's own module, adapters and all: its weights are new without being published.

    Raises:
        UserError: the model has sliding-window or linear-attention layers.
    """

    def __init__(self, model: Any, pad_id: int, slots: int = 256, shared: bool = False) -> None:
        text_config = model.config.get_text_config()
        refuse_partial_attention(text_config)
        self.version = 0
        self.model = model
        self.pad_id, self.slots, self.shared = pad_id, slots, shared
        self._layers = int(text_config.num_hidden_layers)
        self._waiting: deque[Request] = deque()
        self._head: _Prefilled | None = None
        self._rows: list[_Row] = []
        self._cache = SlotCache(self._layers, slots, 128)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    # --- the protocol ----------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        self._waiting.extend(requests)

    @torch.no_grad()
    def poll(self) -> list[Completion]:
        """Let waiting samples in, then generate one token for every active row."""
        finished = self._admit()
        if self._rows:
            logits_S_V = self._decode()
            self._append(self._rows, logits_S_V)
            finished += self._leave()
        return finished

    def abort(self, ids: Iterable[str] | None = None) -> list[Completion]:
        wanted = None if ids is None else set(ids)

        def hit(request: Request) -> bool:
            return wanted is None or request.id in wanted

        partials = [self._complete(r, "abort") for r in self._rows if hit(r.request)]
        if self._head is not None and hit(self._head.request):
            request = self._head.request
            partials += [self._empty(request, j) for j in range(self._head.started, request.n)]
            self._head = None
        partials += [self._empty(r, j) for r in self._waiting if hit(r) for j in range(r.n)]
        self._waiting = deque(r for r in self._waiting if not hit(r))
        self._keep([i for i, r in enumerate(self._rows) if not hit(r.request)])
        return partials

    @torch.no_grad()
    def score_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> NDArray[np.float32]:
        scores = np.empty((len(prompts), len(label_ids)), dtype=np.float32)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        labels = torch.tensor(list(label_ids), device=self.device)
        for at in range(0, len(order), self.slots):
            chunk = order[at : at + self.slots]
            _, logits_P_V = self._prefill([prompts[i] for i in chunk], keep=False)
            logprobs = logits_P_V.float().log_softmax(-1)[:, labels]
            scores[chunk] = logprobs.cpu().numpy()
        return scores

    def publish(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Copy the weights, unless they are shared with the trainer.

        Raises:
            ValueError: a tensor is unknown to the model or has another shape, or samples are under way.
        """
        if self._rows or self._waiting or self._head:
            raise ValueError("publish while samples are under way: poll them to the end or abort them first")
        if not self.shared:
            self._copy(named_tensors)
        self.version = version

    def sleep(self) -> None:
        """Free the cache; the weights stay, they are the trainer's."""
        if not self._rows:
            self._cache = SlotCache(self._layers, self.slots, 128)

    def wake(self, tags: Sequence[str] = ("weights", "cache")) -> None:
        """The cache comes back by itself."""

    def close(self) -> None:
        self.abort()
        self.sleep()

    @torch.no_grad()
    def _copy(self, named_tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
        own = dict(self.model.named_parameters()) | dict(self.model.named_buffers())
        for name, tensor in named_tensors:
            if name not in own or own[name].shape != tensor.shape:
                raise ValueError(f"published tensor {name} {tuple(tensor.shape)} does not fit the sampler's model")
            own[name].copy_(tensor)

    # --- rows enter ------------------------------------------------------------------------------------

    def _admit(self) -> list[Completion]:
        """Fill free slots. Prompts are prefilled together; a few free slots wait for more of them."""
        free = self.slots - len(self._rows)
        waiting = sum(r.n for r in self._waiting) + (self._head.request.n - self._head.started if self._head else 0)
        if not waiting or free < min(waiting, max(1, self.slots // 8)):
            return []
        sources = [self._head] if self._head else []
        room = free - sum(p.request.n - p.started for p in sources)
        fresh = []
        while room > 0 and self._waiting:
            fresh.append(self._waiting.popleft())
            room -= fresh[-1].n
        if fresh:
            sources += self._prefill_requests(fresh)
        return self._start(sources, free)

    def _prefill_requests(self, requests: Sequence[Request]) -> list[_Prefilled]:
        kv, logits_P_V = self._prefill([r.prompt_ids for r in requests], keep=True)
        return [
            _Prefilled(
                r,
                [(k[p, :, k.shape[2] - len(r.prompt_ids) :], v[p, :, v.shape[2] - len(r.prompt_ids) :]) for k, v in kv],
                logits_P_V[p],
            )
            for p, r in enumerate(requests)
        ]

    def _prefill(
        self, prompts: Sequence[Sequence[int]], keep: bool
    ) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
        """One forward pass over left-padded prompts: keys and values per layer, and the last logits (P, V)."""
        width = max(len(p) for p in prompts)
        tokens = torch.full((len(prompts), width), self.pad_id)
        starts = torch.tensor([width - len(p) for p in prompts])
        for i, p in enumerate(prompts):
            tokens[i, width - len(p) :] = torch.tensor(list(p))
        columns = torch.arange(width)
        positions = (columns - starts[:, None]).clamp(min=0)
        causal = columns[None, :] <= columns[:, None]
        visible = columns[None, None, :] >= starts[:, None, None]
        # Padding attends to itself: a row that sees nothing would be NaN and spread through the values.
        mask = (causal & visible) | torch.eye(width, dtype=torch.bool)
        cache = DynamicCache() if keep else None
        out = self.model(
            input_ids=tokens.to(self.device),
            attention_mask=self._additive(mask[:, None]),
            position_ids=positions.to(self.device),
            past_key_values=cache,
            use_cache=keep,
            logits_to_keep=1,
        )
        layers = [(layer.keys, layer.values) for layer in cache.layers] if cache is not None else []
        return layers, out.logits[:, -1]

    def _start(self, sources: Sequence[_Prefilled], free: int) -> list[Completion]:
        """Give each source's next samples a row and draw their first token."""
        cache = self._cache
        entering: list[tuple[_Prefilled, int]] = []
        for source in sources:
            count = min(source.request.n - source.started, free - len(entering))
            entering += [(source, source.started + j) for j in range(count)]
            source.started += count
        self._head = next((s for s in sources if s.started < s.request.n), None)
        longest = max(len(s.request.prompt_ids) for s, _ in entering)
        if not self._rows:
            cache.now, cache.low = longest, 0
        elif cache.now < longest:
            cache.reserve(longest + 1)
            cache.shift(len(self._rows), longest - cache.now)
        cache.reserve(cache.now + 1)
        first = len(self._rows)
        logits = torch.stack([s.logits_V for s, _ in entering])
        rows = [_Row(s.request, j, len(s.request.prompt_ids), [], []) for s, j in entering]
        for n, layer in enumerate(cache.layers):
            if not layer.is_initialized:
                k, v = entering[0][0].kv[n]
                layer.lazy_initialization(k[None], v[None])
            at = first
            for source in sources:
                count = sum(s is source for s, _ in entering)
                span = slice(cache.now - len(source.request.prompt_ids), cache.now)
                layer.keys[at : at + count, :, span] = source.kv[n][0]
                layer.values[at : at + count, :, span] = source.kv[n][1]
                at += count
        self._rows += rows
        self._append(rows, logits)
        return self._leave()

    # --- rows grow and leave ---------------------------------------------------------------------------

    def _decode(self) -> torch.Tensor:
        """Feed every row its pending token: next-token logits (S, V)."""
        cache, rows = self._cache, self._rows
        lengths = torch.tensor([r.length for r in rows])
        starts = cache.now - lengths
        cache.low = int(starts.min())
        if cache.now + 1 > cache.columns:
            if cache.low * 4 >= cache.columns:
                cache.shift(len(rows), -cache.low)
                starts = cache.now - lengths
            cache.reserve(cache.now + 1)
        mask = torch.arange(cache.low, cache.now + 1) >= starts[:, None]
        out = self.model(
            input_ids=torch.tensor([[r.ids[-1]] for r in rows]).to(self.device),
            attention_mask=self._additive(mask[:, None, None]),
            position_ids=lengths[:, None].to(self.device),
            past_key_values=cache,
            use_cache=True,
        )
        cache.now += 1
        for row in rows:
            row.length += 1
        logits: torch.Tensor = out.logits[:, -1]
        return logits

    def _append(self, rows: Sequence[_Row], logits_S_V: torch.Tensor) -> None:
        temperatures = [r.request.temperature for r in rows]
        keys = np.array([r.request.keys[r.index] for r in rows], dtype=np.uint64)
        positions = np.array([r.request.first_position + len(r.ids) for r in rows], dtype=np.uint64)
        tokens, logprobs = draw(logits_S_V, temperatures, rng.uniforms(keys, positions))
        for row, token, logprob in zip(rows, tokens, logprobs, strict=True):
            row.ids.append(token)
            row.logprobs.append(logprob)

    def _leave(self) -> list[Completion]:
        finished, staying = [], []
        for i, row in enumerate(self._rows):
            if row.ids[-1] in row.request.stop_ids:
                finished.append(self._complete(row, "stop"))
            elif len(row.ids) >= row.request.max_new_tokens:
                finished.append(self._complete(row, "length"))
            elif circling(row.request, row.ids):
                finished.append(self._complete(row, "repeat"))
            else:
                staying.append(i)
        self._keep(staying)
        return finished

    def _keep(self, staying: Sequence[int]) -> None:
        """Drop all other rows: rows from the end move into the gaps."""
        kept = set(staying)
        count = len(staying)
        movers = [i for i in staying if i >= count]
        rows = self._rows[:count]
        for gap in (i for i in range(count) if i not in kept):
            source = movers.pop()
            self._cache.move(source, gap)
            rows[gap] = self._rows[source]
        self._rows = rows

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        """0 where a key is visible, else the lowest number: what every attention implementation understands."""
        dtype = self.model.dtype
        mask = torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
        return mask.to(self.device)

    def _complete(self, row: _Row, finish: Any) -> Completion:
        return Completion(row.request.id, row.index, tuple(row.ids), tuple(row.logprobs), finish, self.version)

    def _empty(self, request: Request, index: int) -> Completion:
        return Completion(request.id, index, (), (), "abort", self.version)


def draw(
    logits_S_V: torch.Tensor, temperatures: Sequence[float], uniforms_S: NDArray[np.float64]
) -> tuple[list[int], list[float]]:
    """One token per row by inverting the cumulative distribution at a given uniform, and its log-prob.

    Temperature 0 takes the most likely token; log-probs are then those at T = 1.
    """
    device = logits_S_V.device
    scale = torch.tensor([t or 1.0 for t in temperatures], dtype=torch.float32, device=device)
    logprobs_S_V = (logits_S_V.float() / scale[:, None]).log_softmax(-1)
    cumulative = logprobs_S_V.double().exp().cumsum(-1)
    uniform = torch.from_numpy(uniforms_S).to(device)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, uniform, right=True).squeeze(-1).clamp(max=logits_S_V.shape[1] - 1)
    greedy = torch.tensor([t == 0 for t in temperatures], device=device)
    tokens = torch.where(greedy, logprobs_S_V.argmax(-1), tokens)
    chosen = logprobs_S_V.gather(-1, tokens[:, None]).squeeze(-1)
    return tokens.tolist(), chosen.tolist()
