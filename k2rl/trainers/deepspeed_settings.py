"""What DeepSpeed is told: its settings, and the groups of parameters that make its optimizers do what ours do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from k2rl.errors import UserError
from k2rl.optim.matrices import WHOLE, hidden_matrices
from k2rl.recipe import OptimConfig, TrainerConfig

_MOMENTUM = 0.95


def settings(trainer: TrainerConfig, optim: OptimConfig, dtype: torch.dtype) -> dict[str, Any]:
    """DeepSpeed's own. Micro-batches, accumulation and learning rates are the rank's: each loss is complete."""
    zero: dict[str, Any] = {"stage": trainer.zero_stage, "reduce_scatter": optim.name != "muon"}
    if trainer.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    told: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # DeepSpeed's Muon writes updates where gradients were before it clips.
        "gradient_clipping": 0.0 if optim.name == "muon" else optim.grad_clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        # By itself it adds micro-batches up in the weights' dtype; at stage 1 of bfloat16 anything else is another
        # optimizer, which keeps all gradients twice.
        "data_types": {"grad_accum_dtype": "fp32" if trainer.zero_stage > 1 else None},
    }
    if optim.name == "muon":
        told["optimizer"] = {
            "type": "Muon",
            "params": {
                "lr": 0.0,
                "momentum": _MOMENTUM,
                "betas": list(optim.betas),
                "ns_method": "standard",
                "torch_adam": True,
            },
        }
    return told


def parameter_groups(model: Any, optim: OptimConfig) -> tuple[list[dict[str, Any]], list[float]]:
    """Parameters grouped by how they are updated, and what the learning rate of each group is multiplied by.

    DeepSpeed's Muon scales by sqrt(max(1, A / B)), ours by 0.2 sqrt(max(A, B)): the quotient goes into the rate,
    and out of the decay.

    Raises:
        UserError: Muon, and the model keeps several matrices in one weight.
    """
    matrices = hidden_matrices(model) if optim.name == "muon" else {}
    if fused := [split for split in matrices.values() if split != WHOLE]:
        raise UserError(
            f"optim.name=muon with trainer.backend=deepspeed: {model.config.model_type} keeps several "
            f"matrices in one weight ({len(fused)} such): use optim.name=adamw, or trainer.backend=torch"
        )
    trained = [p for p in model.parameters() if p.requires_grad]
    rest = [p for p in trained if p not in matrices]
    decay = optim.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    ratios = [optim.adamw_lr_ratio if matrices else 1.0] * 2
    by_factor: dict[float, list[torch.Tensor]] = {}
    for matrix in matrices:
        rows, columns = matrix.shape
        factor = 0.2 * max(rows, columns) ** 0.5 / max(1.0, rows / columns) ** 0.5
        by_factor.setdefault(factor, []).append(matrix)
    for factor, some in by_factor.items():
        groups.append({"params": some, "weight_decay": decay / factor})
        ratios.append(factor)
    known = [(group, ratio) for group, ratio in zip(groups, ratios, strict=True) if group["params"]]
    return [group for group, _ in known], [ratio for _, ratio in known]


def adamw(groups: Sequence[Mapping[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer inside ZeRO. Its rates are set at each step."""
    betas = (optim.betas[0], optim.betas[1])
    return torch.optim.AdamW([dict(group) for group in groups], lr=0.0, betas=betas, foreach=False)
