"""Low-rank adapters (LoRA, arXiv 2106.09685) inside a model, by peft; and the plain weights they amount to.

The adapters are put into the model itself: its class, its forward pass and who holds it stay what they were, so the
sampler of this process samples with them at once. Elsewhere weights are known by transformers' own names:
`full_weights` gives them, adapters merged, one tensor at a time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from k2rl import rng
from k2rl.errors import UserError
from k2rl.recipe import LoraConfig

_NAME = "default"


def attach(model: Any, config: LoraConfig, seed: int) -> None:
    """Freeze `model` and put adapters into its linear layers; they change nothing until they are trained.

    Raises:
        UserError: peft is not installed, or the model has no layers of the named kind.
    """
    if find_spec("peft") is None:
        raise UserError('model.lora needs peft: pip install "k2rl[lora]"')
    import peft

    there = linear_names(model)
    wanted = there if config.modules == "all-linear" else list(config.modules)
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        raise UserError(
            f"model.lora.modules: {model.config.model_type} has no linear layer "
            f"{', '.join(missing) or 'outside its head'}: it has {', '.join(there) or 'none'}"
        )
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=wanted, lora_dropout=0.0)
    dtype, draw = model.dtype, torch.Generator().manual_seed(rng.key(seed, "lora") >> 1)
    peft.inject_adapter_in_model(settings, model, adapter_name=_NAME)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            bound = parameter.shape[1] ** -0.5
            parameter.data = torch.empty(parameter.shape).uniform_(-bound, bound, generator=draw).to(parameter.device)
        if ".lora_" in name:
            parameter.data = parameter.data.to(dtype)
    model.eval()


def linear_names(model: Any) -> list[str]:
    """The last names of the model's linear layers, in its order, without the output head."""
    head = model.get_output_embeddings()
    found = (n for n, m in model.named_modules() if _is_linear(m) and m is not head)
    return list(dict.fromkeys(name.rpartition(".")[2] for name in found))


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"  # GPT-2's transposed kind


def has_adapters(model: Any) -> bool:
    return any(".lora_" in name for name, _ in model.named_parameters())


@torch.no_grad()
def full_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's parameters under transformers' names, adapters merged, each made when it is asked for.

    A merged weight is added up in float32 and rounded once to the weight's dtype. A tied weight comes once.
    """
    for weight in weights_of(model):
        yield weight.name, weight.value()


@dataclass(frozen=True)
class Weight:
    """A weight under transformers' name, and what it is made of: `value()` needs these parameters to be whole."""

    name: str
    parameters: tuple[torch.Tensor, ...]
    value: Callable[[], torch.Tensor]


def weights_of(model: Any) -> Iterator[Weight]:
    """What `full_weights` is made of; a tied weight comes once."""
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        plain = name.replace(".base_layer.", ".")
        owner = model.get_submodule(name.rpartition(".")[0].removesuffix(".base_layer"))
        if hasattr(owner, "lora_A") and name.endswith(".base_layer.weight"):
            parts = (parameter, owner.lora_A[_NAME].weight, owner.lora_B[_NAME].weight)
            yield Weight(plain, parts, partial(_merged, owner, *parts))
        else:
            yield Weight(plain, (parameter,), parameter.detach)


def _merged(owner: Any, base: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    delta = b.float() @ a.float() * owner.scaling[_NAME]
    delta = delta.T if owner.fan_in_fan_out else delta
    merged: torch.Tensor = (base.float() + delta).to(base.dtype)
    return merged


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapters alone, in the form that `peft.PeftModel.from_pretrained(base, folder)` reads."""
    folder.mkdir(exist_ok=True)
    tensors = {
        f"base_model.model.{name.replace(f'.{_NAME}.', '.')}": p.detach().cpu().contiguous()
        for name, p in model.named_parameters()
        if ".lora_" in name
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = model.peft_config[_NAME].to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])
    settings |= {"base_model_name_or_path": model.config.name_or_path, "inference_mode": True, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1, default=str), encoding="utf-8")
