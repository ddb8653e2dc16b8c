"""Rows that are decoded together: they enter, grow by a token a step, and leave.

All rows write their next key and value into the same cache column, so a row that enters late simply starts further
right: a prompt of length p occupies the p columns before the current one. Finished rows leave at once (rows from the
end move into the gaps) and waiting samples enter; a prompt is prefilled once for its whole group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from k2rl import rng
from k2rl.protocols import Completion, Request
from k2rl.repetition import circling
from k2rl.samplers import llama
from k2rl.samplers.drawing import draw
from k2rl.samplers.prefill import KeyValues, additive, prefill
from k2rl.samplers.slot_cache import SlotCache

Finish = Literal["stop", "length", "repeat", "abort"]
_COLUMNS = 128
"""Cache columns to begin with."""


@dataclass
class _Prefilled:
    """A prompt's keys and values per layer, (heads, length, head size) each, and its next-token logits (V,)."""

    request: Request
    kv: KeyValues
    logits_V: torch.Tensor
    started: int = 0

    @property
    def left(self) -> int:
        return self.request.n - self.started


class Decoder:
    """Up to `slots` rows of one model, on one thread at a time.

    `waiting` are requests none of whose samples has a row yet.
    """

    def __init__(self, model: Any, pad_id: int, slots: int) -> None:
        self.model, self.pad_id, self.slots = model, pad_id, slots
        self._llama = llama.known(model)
        self.version = 0
        self.waiting: deque[Request] = deque()
        self._head: _Prefilled | None = None
        self._names: list[tuple[Request, int]] = []
        # Per row: tokens in the cache, tokens said, key and first position of its draws.
        self._length, self._said = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        self._key, self._first = (np.zeros(slots, np.uint64) for _ in range(2))
        self._temperature = np.zeros(slots, np.float32)
        # What it said. The last token has been drawn, but not yet fed to the model.
        self._ids, self._logprobs = np.zeros((slots, 64), np.int64), np.zeros((slots, 64), np.float32)
        self.free_cache()

    @property
    def rows(self) -> int:
        return len(self._names)

    @property
    def load(self) -> int:
        """Samples that have a row, or wait here for one."""
        return self.rows + self._waiting_samples()

    def free_cache(self) -> None:
        """Give back the memory of the keys and values, which no row may need."""
        assert not self._names
        self._cache = SlotCache(int(self.model.config.get_text_config().num_hidden_layers), self.slots, _COLUMNS)

    @torch.inference_mode()
    def step(self) -> list[Completion]:
        """Let waiting samples in, then generate one token for every row."""
        finished = self._admit()
        if self._names:
            finished += self._append(0, self._decode())
        return finished

    @torch.inference_mode()
    def abort(self, hit: Callable[[Request], bool]) -> list[Completion]:
        """Drop the samples of some requests; returns them as they are."""
        dropped = np.array([i for i, (request, _) in enumerate(self._names) if hit(request)], dtype=np.int64)
        partials = [self._complete(i, "abort") for i in dropped.tolist()]
        self._drop(dropped)
        if self._head is not None and hit(self._head.request):
            request = self._head.request
            partials += [empty(request, j, self.version) for j in range(self._head.started, request.n)]
            self._head = None
        partials += [empty(r, j, self.version) for r in self.waiting if hit(r) for j in range(r.n)]
        self.waiting = deque(r for r in self.waiting if not hit(r))
        return partials

    @torch.inference_mode()
    def adopt(self, other: Decoder) -> None:
        """Take over all rows of another decoder of the same model; there must be slots for them."""
        first, rows = self.rows, other.rows
        self._cache.open(first, other._cache.now - other._cache.low)
        self._cache.adopt(other._cache, first, rows)
        self._room(other._ids.shape[1])
        for mine, theirs in zip(self._arrays(), other._arrays(), strict=True):
            if mine.ndim == 1:
                mine[first : first + rows] = theirs[:rows]
            else:
                mine[first : first + rows, : theirs.shape[1]] = theirs[:rows]
        self._names += other._names
        other._names = []

    # --- rows enter --------------------------------------------------------------------------------------

    def _waiting_samples(self) -> int:
        return sum(r.n for r in self.waiting) + (self._head.left if self._head else 0)

    def _admit(self) -> list[Completion]:
        """Fill free slots. Prompts are prefilled together; a few free slots wait for more of them."""
        free, waiting = self.slots - self.rows, self._waiting_samples()
        if not waiting or free < min(waiting, max(1, self.slots // 8)):
            return []
        sources = [self._head] if self._head else []
        room = free - sum(s.left for s in sources)
        fresh = []
        while room > 0 and self.waiting:
            fresh.append(self.waiting.popleft())
            room -= fresh[-1].n
        return self._start(sources + self._prefilled(fresh), free)

    def _prefilled(self, requests: Sequence[Request]) -> list[_Prefilled]:
        if not requests:
            return []
        prefix, logits_P_V = prefill(self.model, [r.prompt_ids for r in requests], self.pad_id)
        return [
            _Prefilled(
                r, [(k[p, :, -len(r.prompt_ids) :], v[p, :, -len(r.prompt_ids) :]) for k, v in prefix.kv], logits_P_V[p]
            )
            for p, r in enumerate(requests)
        ]

    def _start(self, sources: Sequence[_Prefilled], free: int) -> list[Completion]:
        """Give each source's next samples a row and draw their first token."""
        first, cache = self.rows, self._cache
        cache.open(first, max(len(s.request.prompt_ids) for s in sources))
        logits = []
        for source in sources:
            request, at = source.request, self.rows
            count = min(source.left, free - (at - first))
            rows, prompt = slice(at, at + count), len(request.prompt_ids)
            for layer, (keys, values) in zip(cache.layers, source.kv, strict=True):
                if not layer.is_initialized:
                    layer.lazy_initialization(keys[None], values[None])
                layer.keys[rows, :, cache.now - prompt : cache.now] = keys
                layer.values[rows, :, cache.now - prompt : cache.now] = values
            samples = range(source.started, source.started + count)
            self._names += [(request, j) for j in samples]
            self._length[rows], self._said[rows] = prompt, 0
            self._key[rows], self._first[rows] = request.keys[samples.start : samples.stop], request.first_position
            self._temperature[rows] = request.temperature
            source.started += count
            logits.append(source.logits_V.expand(count, -1))
        self._head = next((s for s in sources if s.left), None)
        return self._append(first, torch.cat(logits))

    # --- rows grow and leave -----------------------------------------------------------------------------

    def _decode(self) -> torch.Tensor:
        """Feed every row its pending token: next-token logits (S, V)."""
        cache, rows, model = self._cache, self.rows, self.model
        lengths = self._length[:rows]
        cache.low = cache.now - int(lengths.max())
        if cache.now + 1 > cache.columns:
            if cache.low * 4 >= cache.columns:
                cache.shift(rows, -cache.low)
            cache.reserve(cache.now + 1, rows)
        starts = cache.now - lengths
        tokens = torch.from_numpy(self._ids[np.arange(rows), self._said[:rows] - 1]).to(model.device)
        mask = additive(model, torch.from_numpy(np.arange(cache.low, cache.now + 1) >= starts[:, None]))
        positions = torch.from_numpy(lengths).to(model.device)
        if self._llama:
            logits_S_V = llama.logits(model, tokens, positions, mask, cache)
        else:
            logits_S_V = model(
                input_ids=tokens[:, None],
                attention_mask=mask[:, None, None],
                position_ids=positions[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits[:, -1]
        cache.now += 1
        self._length[:rows] += 1
        return logits_S_V

    def _append(self, first: int, logits_S_V: torch.Tensor) -> list[Completion]:
        """Draw the next token of the rows from `first` on; those that are done with it leave."""
        rows = np.arange(first, self.rows)
        said = self._said[rows]
        uniforms = rng.uniforms(self._key[rows], self._first[rows] + said.astype(np.uint64))
        tokens, logprobs = draw(logits_S_V, self._temperature[rows], uniforms)
        self._room(int(said.max()) + 1)
        self._ids[rows, said], self._logprobs[rows, said] = tokens, logprobs
        self._said[rows] += 1
        done = {
            row: finish
            for row, token, said in zip(rows.tolist(), tokens.tolist(), self._said[rows].tolist(), strict=True)
            if (finish := self._finish(row, token, said)) is not None
        }
        finished = [self._complete(row, finish) for row, finish in done.items()]
        self._drop(np.array(list(done), dtype=np.int64))
        return finished

    def _finish(self, row: int, token: int, said: int) -> Finish | None:
        """Why a row ends with `token`, the last of `said`, if it does."""
        request, _ = self._names[row]
        if token in request.stop_ids:
            return "stop"
        if said >= request.max_new_tokens:
            return "length"
        if request.max_repeats is not None and circling(request, self._ids[row, :said].tolist()):
            return "repeat"
        return None

    def _drop(self, dropped: NDArray[np.int64]) -> None:
        """Take rows out: rows from the end move into the gaps."""
        count = self.rows - len(dropped)
        gaps = dropped[dropped < count]
        movers = np.setdiff1d(np.arange(count, self.rows), dropped, assume_unique=True)
        self._cache.move(movers, gaps)
        for array in self._arrays():
            array[gaps] = array[movers]
        for gap, mover in zip(gaps, movers, strict=True):
            self._names[gap] = self._names[mover]
        del self._names[count:]

    def _arrays(self) -> tuple[NDArray[Any], ...]:
        """Everything there is per row."""
        per_row = (self._length, self._said, self._key, self._first, self._temperature)
        return (*per_row, self._ids, self._logprobs)

    def _room(self, tokens: int) -> None:
        """Make sure that rows can say that many tokens."""
        had = self._ids.shape[1]
        if tokens > had:
            more = ((0, 0), (0, max(tokens, 2 * had) - had))
            self._ids, self._logprobs = np.pad(self._ids, more), np.pad(self._logprobs, more)

    def _complete(self, row: int, finish: Finish) -> Completion:
        (request, index), said = self._names[row], self._said[row]
        ids, logprobs = self._ids[row, :said].tolist(), self._logprobs[row, :said].tolist()
        return Completion(request.id, index, tuple(ids), tuple(logprobs), finish, self.version)


def empty(request: Request, index: int, version: int) -> Completion:
    """A sample that was given up before it began."""
    return Completion(request.id, index, (), (), "abort", version)
