"""Load a policy (model, tokenizer, chat) from a transformers folder, a hub id or the embedded nano; save one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils import logging as hub_logging
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

from k2rl import assets, lora
from k2rl.chat import Chat
from k2rl.errors import UserError
from k2rl.recipe import ModelConfig

_SMALL = 30_000_000
"""Parameters of a small model, in the sense of `one_thread_workers`."""


@dataclass(frozen=True)
class Policy:
    """A model with its tokenizer and chat; `context` is the most tokens it takes."""

    model: Any
    tokenizer: Any
    chat: Chat
    context: int


@dataclass(frozen=True)
class Description:
    """What is known of a model without its weights: where it is, its transformers config, its tokenizer and chat."""

    path: str
    config: Any
    tokenizer: Any
    chat: Chat


def place(config: ModelConfig) -> str:
    """The folder, or hub id, that a recipe's `model.path` stands for."""
    return str(assets.NANO) if config.path == "nano" else os.path.expanduser(config.path)


def describe(config: ModelConfig) -> Description:
    """The model a recipe names, without its weights.

    Raises:
        UserError: there is none that can be read.
    """
    path = place(config)
    looks_local = config.path.startswith((".", "/", "~")) or (os.sep in path and Path(path).parent.is_dir())
    if config.path == "nano" and not assets.NANO.is_dir():
        raise UserError("the embedded model nano is not part of this installation: make it with `k2rl sft nano_sft`")
    if looks_local and not (Path(path) / "config.json").is_file():
        raise UserError(f"model.path={config.path}: no config.json there; give a transformers folder or a hub id")
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # A dead network is one line of ours, not a dozen retries of theirs.
    transformers_logging.disable_progress_bar()
    with loading(config):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=config.trust_remote_code)
        described = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    return Description(path, described, tokenizer, Chat(tokenizer, _generation_stops(path)))


def load_policy(config: ModelConfig, seed: int = 0) -> Policy:
    """The policy a recipe names; `seed` is what new adapters begin with.

    Raises:
        UserError: there is no loadable causal LM, or it can't have the adapters asked for.
    """
    found, device = describe(config), pick_device(config.device)
    with loading(config):
        model = AutoModelForCausalLM.from_pretrained(
            found.path,
            dtype=dtype_named(config.dtype),
            trust_remote_code=config.trust_remote_code,
            use_safetensors=True,
        )
    model.to(device).eval()
    if config.lora is not None:
        lora.attach(model, config.lora, seed)
    return Policy(model, found.tokenizer, found.chat, context_length(model.config))


@contextmanager
def loading(config: ModelConfig) -> Iterator[None]:
    """Around transformers' loading: what it raises is a `UserError` of one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"model.path={config.path}: cannot be loaded: {str(error).strip().splitlines()[0]}") from None


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one. Raises `UserError` for a device torch does not have."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"model.device={name}: {str(error).splitlines()[0]}") from None
    return device


def checkpoint_layers(model: Any) -> None:
    """Keep each layer's input alone for the backward pass, and compute the rest of the layer again there.

    Only where gradients are recorded: sampling is untouched. transformers' own switch works in training mode, where
    dropout would act; the policy stays in eval mode.

    Raises:
        UserError: the model's class does not say what its layers are.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            f"trainer.gradient_checkpointing: {model.config.model_type} does not say which of its parts are layers; "
            "leave it off, and lower trainer.micro_batch_tokens where memory is short"
        )
    for layer in layers:
        layer.forward = _computed_again(layer.forward)


def _computed_again(forward: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return call


def context_length(config: Any) -> int:
    """The most positions the model takes; very large where its config does not say.

    Beyond the original ones of longrope and dynamic scaling, transformers turns *all* positions of a call by what its
    longest row needs: a rollout's log-probs would depend on its neighbours. Such a model is used up to there.
    """
    text = config.get_text_config()
    most = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("longrope", "dynamic"):
        original = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", 0)
        most = min(most, int(original or most))
    return most


def save_policy(model: Any, tokenizer: Any, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a transformers folder that plain transformers and vLLM load: adapters are merged, and lie beside the
    weights in `adapter/` too. `dtype` stores the weights in another type than they are trained in."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
    full = {**dict(lora.full_weights(model)), **buffers}
    tensors = {name: tensor.to("cpu", dtype or tensor.dtype).contiguous() for name, tensor in full.items()}
    kept, model.config.dtype = model.config.dtype, dtype or model.dtype
    model.save_pretrained(folder, state_dict=tensors)
    model.config.dtype = kept
    if lora.has_adapters(model):
        lora.save_adapter(model, folder / "adapter")
    tokenizer.save_pretrained(folder)


def dtype_named(name: str) -> torch.dtype:
    """`auto` is float32, whatever the weights were saved in."""
    dtype = torch.float32 if name == "auto" else getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _generation_stops(path: str) -> list[int]:
    """The end tokens a model's generation config lists."""
    try:
        eos = GenerationConfig.from_pretrained(path).eos_token_id
    except (OSError, ValueError, json.JSONDecodeError):
        return []
    return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)


def partial_attention(config: Any) -> list[str]:
    """What a model's layers have instead of attention to the whole context; empty where they all have that."""
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "layer_types", None) and window and window < (config.max_position_embeddings or window + 1):
        kinds.add(f"a sliding window of {window}")
    if getattr(config, "attention_layers", None) or getattr(config, "alibi", False) or config.model_type == "bloom":
        kinds.add("local or ALiBi attention")
    return sorted(kinds)


def refuse_partial_attention(config: Any) -> None:
    """Raises `UserError` where a prepared mask would be wrong for some of the layers."""
    if kinds := partial_attention(config):
        raise UserError(
            f"the torch sampler takes models with full attention in every layer; {config.model_type} has "
            f"{', '.join(kinds)}"
        )


def one_thread_workers(model: Any, device: str | None = None) -> int:
    """On how many threads a model is best used at once, one thread each: a CPU's all for a small one, whose operations
    are too short to be split over threads; else 1. `device` is its own unless given."""
    small = sum(p.numel() for p in model.parameters()) <= _SMALL
    return min(torch.get_num_threads(), 4) if small and (device or model.device.type) == "cpu" else 1
