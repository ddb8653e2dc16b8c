"""What a model holds of given weights, found by its own loader.

A model fuses, shards and pads weights as it likes; where they belong only its loader knows. So each tensor is loaded
once more, and what that changes was not there before. A tensor that is loaded and not computed with is not found so:
for a layer, `computed` reads off the weights that it multiplies by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_ROUNDINGS = 2
"""A tensor that is made anew (gathered, or merged with an adapter) may round the other way: in its own dtype, and
before that in float32, by its largest number."""
_FLOAT32 = torch.finfo(torch.float32).eps
_NUMBERS = 1 << 22
"""Numbers compared at a time."""
_UNITS = 256
"""Unit vectors at a time."""


def changes(
    model: nn.Module,
    load: Callable[[list[tuple[str, torch.Tensor]]], object],
    named: Iterable[tuple[str, torch.Tensor]],
) -> dict[str, float]:
    """Load tensors one by one; by how much each changed a number of the model, see `gap`.

    A tensor that has no place in the model, or in this shard of it, is left out.
    """
    storages = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found = {}
    for name, tensor in named:
        with _Writes(storages) as writes:
            load([(name, tensor)])
        if writes.gaps:
            found[name] = max(writes.gaps)
    return found


def differing(shards: Iterable[dict[str, float]], names: Iterable[str]) -> dict[str, float]:
    """Of the `changes` of all shards, those that are some; infinite where a tensor has no place in any."""
    found: dict[str, float] = {}
    for shard in shards:
        for name, change in shard.items():
            found[name] = max(found.get(name, 0.0), change)
    return {name: change for name in names if (change := found.get(name, math.inf)) > 0}


@torch.no_grad()
def computed(layer: Callable[[torch.Tensor], torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """The weights that a linear layer without bias multiplies by, however it keeps them.

    `like`: any tensor of their shape (out, in), dtype and device.
    """
    units_I_I = torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
    return torch.cat([layer(some).cpu() for some in torch.split(units_I_I, _UNITS)]).T


def gap(before: torch.Tensor, after: torch.Tensor) -> float:
    """The largest difference of two numbers that is more than rounding, else 0; infinite where one of them is none."""
    if torch.equal(before, after):
        return 0.0
    own = torch.finfo(after.dtype).eps if after.is_floating_point() else 0.0
    scale = float(after.double().abs().nan_to_num(nan=0.0, posinf=0.0).max())
    most = 0.0
    parts = (torch.split(tensor.reshape(-1), _NUMBERS) for tensor in (before, after))
    for left, right in zip(*parts, strict=True):
        old, new = left.double(), right.double()
        apart = torch.where((old == new) | (old.isnan() & new.isnan()), 0.0, old - new).abs().nan_to_num(nan=math.inf)
        rounding = _ROUNDINGS * (own * new.abs().nan_to_num(nan=0.0, posinf=0.0) + _FLOAT32 * scale)
        most = max(most, float(apart.where(apart > rounding, 0.0).max()))
    return most


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What each operation in place changes in these storages. The comparison needs none of the device's memory."""

    def __init__(self, storages: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages = storages
        self.gaps: list[float] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        into = args[0] if func._schema.is_mutable and args else None
        if not isinstance(into, torch.Tensor) or not into.numel():
            return func(*args, **(kwargs or {}))
        if into.untyped_storage().data_ptr() not in self._storages:
            return func(*args, **(kwargs or {}))
        before = into.detach().to("cpu", copy=True)
        result = func(*args, **(kwargs or {}))
        self.gaps.append(gap(before, into.detach().cpu()))
        return result
