"""Which weights of a model are matrices for Muon, and how a weight that holds several falls into them.

Not Muon's: embeddings (of positions too), the head, convolutions, norms, biases. One weight may hold the gate and up
projections of a layer, those of all its experts (E, A, B), or query, key and value: orthogonalising them as one matrix
would mix what the model keeps apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from k2rl.errors import UserError

_FUSED = re.compile(r"qkv|query_key_value|c_attn|W_pack|^in_proj")
"""Names under which several projections lie in one weight."""


@dataclass(frozen=True)
class Split:
    """The matrices in a weight (…, A, B): consecutive `sizes` along `dim` (-2 or -1), or by turns (gate, up, gate, …);
    without sizes the whole."""

    dim: int = -2
    sizes: tuple[int, ...] = ()
    by_turns: bool = False

    def __call__(self, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Views of `weight`, which may have more leading dimensions."""
        if not self.sizes:
            return (weight,)
        if self.by_turns:
            return torch.unflatten(weight, self.dim, (-1, len(self.sizes))).unbind(self.dim)
        return torch.split(weight, list(self.sizes), self.dim)


WHOLE = Split()


def hidden_matrices(model: Any) -> dict[torch.Tensor, Split]:
    """The trainable matrices inside the layers, and how each falls into those to be orthogonalised apart.

    Raises:
        UserError: one holds several projections in an order that is not known here.
    """
    outer = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings()) if m is not None}
    found = {}
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        kind = type(owner)
        if not parameter.requires_grad or parameter.dim() not in (2, 3) or id(parameter) in outer:
            continue
        if leaf.endswith("bias") or issubclass(kind, (torch.nn.Embedding, torch.nn.modules.conv._ConvNd)):
            continue
        own_name = path.rpartition(".")[2] if leaf == "weight" else leaf
        found[parameter] = _split(model.config, owner, own_name, parameter)
    return found


def _split(config: Any, owner: Any, name: str, weight: torch.Tensor) -> Split:
    if name == "gate_up_proj":
        return _gate_up(owner, weight)
    if (config.model_type, name) == ("phi3", "qkv_proj"):
        return _query_key_value(config, weight)
    if (config.model_type, name) == ("gpt2", "c_attn"):
        return Split(-1, (weight.shape[-1] // 3,) * 3)  # GPT-2 keeps its weights transposed.
    if _FUSED.search(name):
        raise UserError(
            f"optim.name=muon: {config.model_type} keeps several projections in one weight ({name}), in an order that "
            "is not known here: use optim.name=adamw"
        )
    return WHOLE


def _gate_up(owner: Any, weight: torch.Tensor) -> Split:
    """Gate and up share the dimension that is twice what `down_proj`, on the other side of them, has."""
    dim = -2
    if weight.dim() == 3:
        rows, columns = owner.down_proj.shape[-2:]
        assert weight.shape[-2:] in ((2 * columns, rows), (columns, 2 * rows)), weight.shape
        dim = -2 if weight.shape[-2:] == (2 * columns, rows) else -1
    half = weight.shape[dim] // 2
    return Split(dim, (half, half), by_turns=not getattr(owner, "is_concatenated", True))


def _query_key_value(config: Any, weight: torch.Tensor) -> Split:
    """Rows of the query's heads; what is left is halved between key and value."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    rest = (weight.shape[0] - heads * size) // 2
    return Split(-2, (heads * size, rest, rest))
