"""Gradients of micro-batches, on several threads where that pays.

A small model's operations are too short to be split over threads; whole micro-batches are not. Each worker runs
forward and backward of its own micro-batch on one thread, and the gradients are added in the micro-batches' order, so
that the sum does not depend on who was done first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from k2rl.models import one_thread_workers

T = TypeVar("T")
Terms = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""A loss to differentiate, and statistics that add up."""


class Gradients:
    """Adds micro-batches' gradients into `parameter.grad`. With one worker this is plain `backward`; None: as many as
    the model is best used with."""

    def __init__(self, model: Any, workers: int | None) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.workers = (workers or one_thread_workers(model)) if model.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self.workers, "k2rl-grad", _one_thread) if self.workers > 1 else None

    def add(self, parts: Iterable[T], terms: Callable[[T], Terms], totals: dict[str, torch.Tensor]) -> None:
        """Differentiate `terms(part)` for each part; statistics are added into `totals`."""
        if self._pool is None:
            for part in parts:
                loss, stats = terms(part)
                loss.backward()  # type: ignore[no-untyped-call]
                _add(totals, stats)
            return
        waiting: deque[Future[tuple[tuple[torch.Tensor | None, ...], dict[str, torch.Tensor]]]] = deque()
        for part in parts:
            waiting.append(self._pool.submit(self._differentiate, terms, part))
            if len(waiting) > 2 * self.workers:
                self._take(waiting.popleft(), totals)
        while waiting:
            self._take(waiting.popleft(), totals)

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _differentiate(
        self, terms: Callable[[T], Terms], part: T
    ) -> tuple[tuple[torch.Tensor | None, ...], dict[str, torch.Tensor]]:
        loss, stats = terms(part)
        return torch.autograd.grad(loss, self.parameters, allow_unused=True), stats

    def _take(
        self,
        done: Future[tuple[tuple[torch.Tensor | None, ...], dict[str, torch.Tensor]]],
        totals: dict[str, torch.Tensor],
    ) -> None:
        grads, stats = done.result()
        for parameter, grad in zip(self.parameters, grads, strict=True):
            if grad is not None:
                # Never in place on what `autograd.grad` returned: it may be shared with another parameter's.
                if parameter.grad is None:
                    parameter.grad = grad.to(parameter.grad_dtype, copy=True)
                else:
                    parameter.grad.add_(grad)
        _add(totals, stats)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _add(totals: dict[str, torch.Tensor], parts: dict[str, torch.Tensor]) -> None:
    for key, value in parts.items():
        totals[key] = totals[key] + value if key in totals else value
