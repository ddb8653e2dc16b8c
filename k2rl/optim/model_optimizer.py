"""The optimizer of a whole model: AdamW, or Muon for the hidden matrices with AdamW for the rest.

An update at RL's learning rates is smaller than the distance between neighbouring bfloat16 numbers and would vanish.
So a weight that is not float32 has a float32 master here: gradients are added up in float32, moments and updates are
the master's, and the weight is the master rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from k2rl.errors import RunError
from k2rl.optim.matrices import hidden_matrices
from k2rl.optim.muon import Muon
from k2rl.recipe import OptimConfig


class ModelOptimizer:
    """Parameters grouped by what updates them; its state is plain tensors by parameter name."""

    def __init__(self, model: Any, config: OptimConfig) -> None:
        self.model, self.config = model, config
        self._masters: dict[torch.Tensor, torch.Tensor] = {}
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype != torch.float32:
                parameter.grad_dtype = torch.float32
                self._masters[parameter] = parameter.detach().float()
        self.reset()

    def reset(self) -> None:
        """Drop the moments; the masters stay."""
        config = self.config
        matrices = hidden_matrices(self.model) if config.name == "muon" else {}
        rest = [self._master(p) for p in self.model.parameters() if p.requires_grad and p not in matrices]
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        # One tensor after the other: all at once, as torch would on a GPU, takes another copy of the weights.
        adamw = torch.optim.AdamW(groups, lr=0.0, betas=(config.betas[0], config.betas[1]), foreach=False)
        self._parts: list[tuple[torch.optim.Optimizer, float]] = [
            (adamw, config.adamw_lr_ratio if matrices else 1.0),
        ]
        if matrices:
            hidden = {self._master(p): split for p, split in matrices.items()}
            self._parts.append((Muon(hidden, weight_decay=config.weight_decay), 1.0))

    def _master(self, parameter: torch.Tensor) -> torch.Tensor:
        """What is updated for a parameter: its master, or itself."""
        return self._masters.get(parameter, parameter)

    def update(self, lr: float) -> float:
        """Clip the gradient to `grad_clip` (0: don't), step at `lr`, drop the gradient; its norm before clipping.

        Raises:
            RunError: the norm is not finite; the weights are left as they were.
        """
        clip = self.config.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip if clip > 0 else float("inf"))
        if not torch.isfinite(norm):
            raise diverged(float(norm))
        self.step(lr)
        return float(norm)

    def step(self, lr: float) -> None:
        """Step at `lr` on the gradient as it is, and drop it."""
        for parameter, master in self._masters.items():
            master.grad, parameter.grad = parameter.grad, None
        for optimizer, ratio in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = lr * ratio
            optimizer.step()
        with torch.no_grad():
            for parameter, master in self._masters.items():
                parameter.copy_(master)
                master.grad = None
        self.zero_grad()

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Masters and moments as `<kind>.<parameter name>` tensors."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if parameter in self._masters:
                found[f"master.{name}"] = self._masters[parameter]
            for optimizer, _ in self._parts:
                for kind, value in optimizer.state.get(self._master(parameter), {}).items():
                    found[f"{kind}.{name}"] = value.detach().contiguous()
        return found

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` returned.

        Raises:
            KeyError: the master of a weight that needs one is not there.
        """
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter in self._masters:
                    self._masters[parameter].copy_(tensors[f"master.{name}"])
        for optimizer, _ in self._parts:
            owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in self.model.named_parameters():
                if id(self._master(parameter)) in owned:
                    state = {
                        kind: tensors[f"{kind}.{name}"]
                        if kind == "step"
                        else tensors[f"{kind}.{name}"].to(parameter.device)
                        for kind in ("step", "exp_avg", "exp_avg_sq", "momentum")
                        if f"{kind}.{name}" in tensors
                    }
                    if state:
                        optimizer.state[self._master(parameter)] = state


def diverged(norm: float) -> RunError:
    """What a gradient without a finite norm ends the run with."""
    return RunError(
        f"the gradient is not finite ({norm}): training diverged; lower optim.lr, or take an objective or options that "
        "hold the policy closer (docs/objectives.md)"
    )
