"""What a model holds of given weights: a model that fuses, pads and shards, with a loader as vLLM's."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from k2rl.engines.comparing import changes, computed, differing, gap

ROWS = {"q": slice(0, 4), "k": slice(4, 6), "v": slice(6, 8)}


class Fused(nn.Module):
    """q, k and v in one parameter, of which a shard holds these columns; a vocabulary of 5 padded to 8; a norm."""

    norm: torch.Tensor

    def __init__(self, columns: slice = slice(0, 6), dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.columns = columns
        self.qkv = nn.Parameter(torch.zeros(8, columns.stop - columns.start, dtype=dtype))
        self.embed = nn.Parameter(torch.zeros(8, 6, dtype=dtype))
        self.register_buffer("norm", torch.zeros(6, dtype=dtype))

    def load_weights(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in named:
            if name in ROWS:
                self.qkv.data[ROWS[name]].copy_(tensor[:, self.columns])
            elif name == "embed":
                self.embed[:5].data.copy_(tensor)
                self.embed[5:].data.fill_(0)
            elif name == "norm":
                self.norm.copy_(tensor)


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shapes = {"q": (4, 6), "k": (2, 6), "v": (2, 6), "embed": (5, 6), "norm": (6,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def found(model: Fused, weights: dict[str, torch.Tensor]) -> dict[str, float]:
    return differing([changes(model, model.load_weights, weights.items())], weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_loaded_is_equal_also_in_another_dtype(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    model = Fused(dtype=dtype)
    model.load_weights(weights.items())
    assert found(model, weights) == {}


@pytest.mark.parametrize("name", ["q", "k", "v", "embed", "norm"])
def test_a_tensor_that_was_not_loaded_is_told_from_its_neighbours(weights: dict[str, torch.Tensor], name: str) -> None:
    model = Fused()
    model.load_weights(weights.items())
    new = {**weights, name: weights[name] + torch.eye(6)[0] * 0.25}
    assert found(model, new) == {name: pytest.approx(0.25)}
    assert found(model, new) == {}, "it holds them now"


def test_what_is_written_elsewhere_is_found(weights: dict[str, torch.Tensor]) -> None:
    model = Fused()
    model.load_weights(weights.items())
    model.load_weights([("v", weights["k"])])
    assert found(model, weights).keys() == {"v"}


def test_a_tensor_without_a_place_is_infinitely_far(weights: dict[str, torch.Tensor]) -> None:
    model = Fused()
    model.load_weights(weights.items())
    assert found(model, {**weights, "bias": torch.ones(3)}) == {"bias": math.inf}
    model.load_weights = lambda named: [t.clone().copy_(t) for _, t in named]  # type: ignore[assignment]
    assert found(model, weights) == dict.fromkeys(weights, math.inf), "what is written to something else is not written"


def test_shards_are_taken_together(weights: dict[str, torch.Tensor]) -> None:
    shards = [Fused(slice(0, 3)), Fused(slice(3, 6))]
    for shard in shards:
        shard.load_weights(weights.items())
    new = {**weights, "k": weights["k"] + torch.eye(6)[5] * 0.5}
    told = [changes(shard, shard.load_weights, new.items()) for shard in shards]
    del told[0]["norm"], told[1]["q"]
    assert differing(told, new) == {"k": pytest.approx(0.5)}


def test_gap_is_what_rounding_does_not_explain() -> None:
    one = torch.tensor([1.0, 1e-3, 100.0])
    assert gap(one, one * (1 + 1e-7)) == 0
    assert gap(one, one * (1 + 1e-5)) == pytest.approx(1e-3, rel=0.01)
    assert gap(one.bfloat16(), one.bfloat16() * (1 + 2**-7)) == 0
    assert gap(one.bfloat16(), (one + torch.tensor([0, 1e-3, 0])).bfloat16()) == pytest.approx(1e-3, rel=0.01)
    nan = torch.tensor([math.nan, 1.0])
    assert gap(nan, nan) == 0
    assert gap(nan, torch.ones(2)) == gap(torch.ones(2), nan) == math.inf
    assert gap(torch.tensor([1, 2]), torch.tensor([1, 5])) == 3
    wide = torch.zeros(5_000_000, dtype=torch.int8)
    assert gap(wide, torch.cat([wide[1:], torch.tensor([2], dtype=torch.int8)])) == 2


def test_a_layer_shows_what_it_multiplies_by() -> None:
    layer = nn.Linear(600, 7, bias=False)
    assert torch.equal(computed(layer, layer.weight), layer.weight)
    packed = layer.weight.detach().clone() + 1
    assert torch.equal(computed(lambda x: x @ packed.T, layer.weight), packed)
