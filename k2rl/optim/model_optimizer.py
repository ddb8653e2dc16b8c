"""The optimizer of a whole model: AdamW, or Muon for the hidden matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from k2rl.errors import RunError
from k2rl.optim.muon import Muon
from k2rl.recipe import OptimConfig


class ModelOptimizer:
    """Parameters grouped by what updates them; its state is plain tensors by parameter name."""

    def __init__(self, model: Any, config: OptimConfig) -> None:
        self.model, self.config = model, config
        parameters = [p for p in model.parameters() if p.requires_grad]
        matrices = hidden_matrices(model) if config.name == "muon" else []
        chosen = {id(p) for p in matrices}
        rest = [p for p in parameters if id(p) not in chosen]
        groups = [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=0.0, betas=(config.betas[0], config.betas[1]))
        self._parts: list[tuple[torch.optim.Optimizer, float]] = [
            (adamw, config.adamw_lr_ratio if matrices else 1.0),
        ]
        if matrices:
            self._parts.append((Muon(matrices, weight_decay=config.weight_decay), 1.0))

    def update(self, lr: float) -> float:
        """Clip the gradient to `grad_clip` (0: don't), step at `lr`, drop the gradient; its norm before clipping.

        Raises:
            RunError: the norm is not finite; the weights are left as they were.
        """
        clip = self.config.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip if clip > 0 else float("inf"))
        if not torch.isfinite(norm):
            raise RunError(
                f"the gradient is not finite ({float(norm)}): training diverged; lower optim.lr, or raise objective.tau"
            )
        for optimizer, ratio in self._parts:
            for group in optimizer.param_groups:
                group["lr"] = lr * ratio
            optimizer.step()
        self.zero_grad()
        return float(norm)

    def zero_grad(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The state as `<kind>.<parameter name>` tensors."""
        found = {}
        for name, parameter in self.model.named_parameters():
            for optimizer, _ in self._parts:
                for kind, value in optimizer.state.get(parameter, {}).items():
                    found[f"{kind}.{name}"] = value.detach().contiguous()
        return found

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `tensors` returned."""
        for optimizer, _ in self._parts:
            owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in self.model.named_parameters():
                if id(parameter) in owned:
                    state = {
                        kind: tensors[f"{kind}.{name}"]
                        if kind == "step"
                        else tensors[f"{kind}.{name}"].to(parameter.device)
                        for kind in ("step", "exp_avg", "exp_avg_sq", "momentum")
                        if f"{kind}.{name}" in tensors
                    }
                    if state:
                        optimizer.state[parameter] = state


def hidden_matrices(model: Any) -> list[torch.Tensor]:
    """The 2-D weights inside the layers: neither embeddings nor the head."""
    outer = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    return [p for p in model.parameters() if p.requires_grad and p.dim() == 2 and id(p) not in outer]
