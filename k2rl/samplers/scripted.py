"""A sampler that says what it is told: for tests of everything around a policy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from k2rl.protocols import Completion, Request

if TYPE_CHECKING:
    import torch

Script = Callable[[Request, int], Sequence[int]]
"""(request, sample index) -> the ids the "policy" would say, stop id included."""


class ScriptedSampler:
    """Answers each request by `script`, cut at the request's budget; log-probs are all `logprob`.

    `per_poll` samples finish per call of `poll`, so that scheduling can be tested; `label_logprobs` answers
    `score_labels`.
    """

    def __init__(
        self,
        script: Script,
        *,
        logprob: float = -1.0,
        per_poll: int = 1_000_000,
        label_logprobs: Callable[[Sequence[int], Sequence[int]], Sequence[float]] | None = None,
    ) -> None:
        self.version = 0
        self.published: list[int] = []
        self._script, self._logprob, self._per_poll = script, logprob, per_poll
        self._label_logprobs = label_logprobs
        self._queue: deque[tuple[Request, int]] = deque()

    def submit(self, requests: Sequence[Request]) -> None:
        self._queue.extend((r, j) for r in requests for j in range(r.n))

    def poll(self) -> list[Completion]:
        return [self._finish(*self._queue.popleft()) for _ in range(min(self._per_poll, len(self._queue)))]

    def abort(self, ids: Iterable[str] | None = None) -> list[Completion]:
        wanted = None if ids is None else set(ids)
        hit = [(r, j) for r, j in self._queue if wanted is None or r.id in wanted]
        self._queue = deque(x for x in self._queue if x not in hit)
        return [Completion(r.id, j, (), (), "abort", self.version) for r, j in hit]

    def score_labels(self, prompts: Sequence[Sequence[int]], label_ids: Sequence[int]) -> NDArray[np.float32]:
        if self._label_logprobs is None:
            raise ValueError("this scripted sampler was given no label_logprobs")
        return np.asarray([self._label_logprobs(p, label_ids) for p in prompts], dtype=np.float32)

    def publish(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self.version = version
        self.published.append(version)

    def sleep(self) -> None:
        """Nothing to give back."""

    def wake(self, tags: Sequence[str] = ("weights", "cache")) -> None:
        """Nothing to take back."""

    def close(self) -> None:
        """Nothing to free."""

    def _finish(self, request: Request, index: int) -> Completion:
        ids = tuple(self._script(request, index))
        stop = next((i for i, t in enumerate(ids) if t in request.stop_ids), None)
        said = ids if stop is None else ids[: stop + 1]
        finish = "stop" if stop is not None and len(said) <= request.max_new_tokens else "length"
        said = said[: request.max_new_tokens]
        logprobs = tuple(self._logprob for _ in said)
        return Completion(request.id, index, said, logprobs, finish, self.version)  # type: ignore[arg-type]
