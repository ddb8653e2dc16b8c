"""Muon with the RMS-matching scale (Moonlight, arXiv 2502.16982), matrices stacked by shape.

    M = mu M + G;  O = newton_schulz(mu M + G);  W -= lr (0.2 sqrt(max(A, B)) O + wd W)

for the hidden matrices (see `matrices.py`); embeddings, head, norms and biases are AdamW's, in the same optimizer. A
weight that holds several matrices, such as the experts of a layer or query, key and value, is orthogonalised matrix by
matrix. Newton-Schulz runs in float32 where the device has no fast bfloat16, on many matrices of a shape at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from k2rl.optim.matrices import WHOLE, Split

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STACK = 1 << 26
"""Elements that are worked on at once: beyond it stacking saves no time and takes memory."""


class Muon(torch.optim.Optimizer):
    """Muon over `weights`, each (…, A, B): a mapping to how they fall into matrices, or plain matrices. `lr` is set per
    group by the trainer."""

    def __init__(
        self,
        weights: Mapping[torch.Tensor, Split] | Sequence[torch.Tensor],
        lr: float = 0.0,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        self.splits = dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(weights, WHOLE)
        super().__init__(list(self.splits), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, Split], list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape, self.splits[parameter]].append(parameter)
            for (_, split), parameters in alike.items():
                for some in _batches(parameters):
                    self._update(some, split, group)

    def _update(self, parameters: Sequence[torch.Tensor], split: Split, group: dict[str, Any]) -> None:
        lr = group["lr"]
        directions = torch.stack([self._direction(p, group["momentum"]) for p in parameters])
        for number, part in enumerate(split(directions)):
            rows, columns = part.shape[-2:]
            matrices = torch.split(part.reshape(-1, rows, columns), max(_STACK // (rows * columns), 1))
            updates = torch.cat([newton_schulz(some) for some in matrices]).view(part.shape)
            scale = 0.2 * max(rows, columns) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                weight = split(parameter)[number]
                weight.mul_(1 - lr * group["weight_decay"]).add_(update.to(weight.dtype), alpha=-lr * scale)

    def _direction(self, parameter: torch.Tensor, mu: float) -> torch.Tensor:
        """Nesterov's: the gradient plus the momentum it has just entered."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        buffer = state["momentum"].mul_(mu).add_(parameter.grad)
        return parameter.grad.add(buffer, alpha=mu)


def _batches(parameters: Sequence[torch.Tensor]) -> Iterator[Sequence[torch.Tensor]]:
    """Parameters of one shape, as many at once as are worth stacking."""
    size = max(_STACK // parameters[0].numel(), 1)
    return (parameters[at : at + size] for at in range(0, len(parameters), size))


def newton_schulz(stack_N_A_B: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, to within the iteration's 0.7 to 1.2 singular values."""
    a, b, c = _COEFFICIENTS
    x: torch.Tensor = stack_N_A_B.to(working_dtype(stack_N_A_B.device))
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def working_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast, which is a GPU that has it; float32 elsewhere (11 times faster on a common CPU)."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if fast else torch.float32
