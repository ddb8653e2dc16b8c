"""Muon with the RMS-matching scale (Moonlight, arXiv 2502.16982), matrices stacked by shape.

    M = mu M + G;  O = newton_schulz(mu M + G);  W -= lr (0.2 sqrt(max(A, B)) O + wd W)

for the 2-D hidden matrices; embeddings, head, norms and biases are AdamW's, in the same optimizer. Newton-Schulz runs
in float32 where the device has no fast bfloat16, on all matrices of a shape at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon over `matrices`, each (A, B). `lr` is set per group by the trainer."""

    def __init__(
        self, matrices: Iterable[torch.Tensor], lr: float = 0.0, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                self._update(parameters, shape, group)

    def _update(self, parameters: list[torch.Tensor], shape: torch.Size, group: dict[str, Any]) -> None:
        mu, lr = group["momentum"], group["lr"]
        directions = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(parameter)
            buffer = state["momentum"].mul_(mu).add_(parameter.grad)
            directions.append(parameter.grad.add(buffer, alpha=mu))
        updates = newton_schulz(torch.stack(directions))
        scale = 0.2 * max(shape) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - lr * group["weight_decay"]).add_(update.to(parameter.dtype), alpha=-lr * scale)


def newton_schulz(stack_N_A_B: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, to within the iteration's 0.7 to 1.2 singular values."""
    a, b, c = _COEFFICIENTS
    work = torch.bfloat16 if stack_N_A_B.is_cuda else torch.float32
    x: torch.Tensor = stack_N_A_B.to(work)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
