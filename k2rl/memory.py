"""What a run's peak of memory will be, from its recipe and its model's config alone.

Nothing here knows a formula of a layer. The run's own code (trainer, losses, optimizer, decode step) runs on tensors
without data, which take no time and no memory, and what would be alive is counted: whatever the architecture, with
LoRA, gradient checkpointing or bfloat16, and also after the trainer has changed.

Not seen are what kernels use inside, what an allocator keeps of tensors that are gone (`slack`), and what a process
has before it begins (`BASE`). What DeepSpeed's ranks and vLLM's engines take follows from their settings instead.
"""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from k2rl import lora, models
from k2rl.batch import Example, batches, text_batch
from k2rl.chat import Chat
from k2rl.engines.vllm_engine import EngineConfig
from k2rl.errors import UserError
from k2rl.losses import objective
from k2rl.optim.model_optimizer import ModelOptimizer
from k2rl.protocols import Request
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve, to_dict
from k2rl.samplers.decoder import Decoder
from k2rl.samplers.drawing import AT_ONCE, draw
from k2rl.samplers.prefill import prefill
from k2rl.trainers.logprobs import CHUNK
from k2rl.trainers.torch_trainer import TorchTrainer
from k2rl.types import End, Rollout, ScoredGroup, Segment, Task

GIB = 2**30
BASE = {"cpu": int(0.4 * GIB), "cuda": int(0.7 * GIB)}
"""Python with torch and transformers; a CUDA context with its libraries' workspaces."""
_CUDA_SLACK = 0.05
_CPU_SLACK = {"all": 0.75, "adapters": 2.0}
"""glibc keeps the pieces that tensors below 32 MiB leave in its heap: shares of what a micro-batch takes, fitted to
`benchmarks/memory.py`. Where all weights are trained, their gradients and moments fill most of the pieces."""
_TRIED = (4, 8)
"""Layers."""
_GATHERED, _REDUCED = 10**9, 5 * 10**8
"""DeepSpeed's defaults, elements: weights that are whole at a time at ZeRO-3, gradients reduced at once."""
_TASKS = 300


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest prompt and of the longest response."""

    prompt: int
    response: int

    @property
    def whole(self) -> int:
        return self.prompt + self.response


def longest(chat: Chat, tasks: Sequence[Task], budget: Callable[[Task], int], context: int) -> Lengths | None:
    """Of the tasks that fit the model's context; None if none does. Tells by some hundreds of them."""
    some = tasks[:: max(1, len(tasks) // _TASKS)]
    sizes = [Lengths(len(chat.prompt(task.messages)), budget(task)) for task in some]
    fits = [size for size in sizes if size.whole <= context]
    return Lengths(max(s.prompt for s in fits), max(s.response for s in fits)) if fits else None


@dataclass(frozen=True)
class Estimate:
    """Bytes of one device: of one GPU where a run has several, of the whole machine without any.

    `held` stays allocated throughout (weights, masters, moments, the sampler's cache, what a critic has of its own),
    `phases` is what each phase of an iteration needs on top: `sampling`, `gradients`, `update`. `slack` is what the
    allocator keeps beside tensors, `base` what the processes have before they begin. `where` says which device in
    words. `checkpoint` and `model` are what those take on a disk."""

    held: Mapping[str, int]
    phases: Mapping[str, int]
    slack: int
    base: int
    where: str
    checkpoint: int
    model: int

    @property
    def tensors(self) -> int:
        """The peak of what tensors take."""
        return sum(self.held.values()) + max(self.phases.values())

    @property
    def peak(self) -> int:
        return self.base + self.tensors + self.slack

    def to_json(self) -> dict[str, Any]:
        kept = {"slack": self.slack, "base": self.base, "peak": self.peak, "where": self.where}
        return {"held": dict(self.held), "phases": dict(self.phases), **kept}


def estimate(recipe: Recipe, config: Any, lengths: Lengths, device: str) -> Estimate:
    """The peak of a run on `device` (`cpu` or `cuda`) of a model with this transformers config.

    Every response is taken to be as long as the longest may be. All layers are alike: of a deep model some are tried,
    and the others added.
    """
    depth = config.get_text_config().num_hidden_layers
    if depth <= _TRIED[1]:
        counted = _tried(recipe, config, lengths, device)
    else:
        few, more = (_tried(recipe, with_layers(config, n), lengths, device) for n in _TRIED)
        steps = (depth - _TRIED[1]) / (_TRIED[1] - _TRIED[0])
        counted = {name: round(more[name] + (more[name] - few[name]) * steps) for name in more}
    held, phases = _of_ranks(recipe, counted, device) if _sharded(recipe) else _of_one(recipe, config, counted, device)
    if device == "cpu":
        workers = rank_count(recipe) if _sharded(recipe) else _workers(recipe, config, device)
        slack = counted["activations"] * workers * _CPU_SLACK["adapters" if recipe.model.lora else "all"]
        engines = recipe.rollout.engines if recipe.rollout.engine == "vllm" else 0
        processes = 1 + engines + (rank_count(recipe) if _sharded(recipe) else 0)
        each = counted["weights"] + EngineConfig.cache_gib * GIB
        if _sharded(recipe):
            held["driver"] = counted["weights"]
    else:
        slack = (sum(held.values()) + max(phases.values())) * _CUDA_SLACK
        engines = engines_beside(recipe)
        processes = 1 + engines
        each = engine_share(recipe) if engines else 0
    # Also one that sleeps while the trainer works: what that worked with its allocator keeps.
    if engines:
        held["engines"] = engines * each
    # DeepSpeed has masters of float32 weights too.
    masters = 4 * counted["trained"] if _sharded(recipe) else counted["masters"]
    trained = counted["trained"] * models.dtype_named(recipe.model.dtype).itemsize
    checkpoint = trained + masters + counted["moments"]
    return Estimate(
        held,
        phases,
        round(slack),
        BASE[device] * processes,
        _where(recipe, device, engines),
        checkpoint,
        counted["weights"],
    )


def _where(recipe: Recipe, device: str, engines: int) -> str:
    beside = f" and {_several(engines, 'engine')}" if engines else ""
    if not _sharded(recipe):
        return f"this process{beside}"
    ranks = rank_count(recipe)
    return (
        f"each of {_several(ranks, 'GPU')}" if device == "cuda" else f"this process, {_several(ranks, 'rank')}{beside}"
    )


def _of_one(
    recipe: Recipe, config: Any, counted: Mapping[str, int], device: str
) -> tuple[dict[str, int], dict[str, int]]:
    """Held, and needed by phases, by a trainer in this process."""
    held = {name: counted[name] for name in ("weights", "masters", "cache", "moments", "critic")}
    workers = _workers(recipe, config, device)
    waiting = 0 if workers == 1 else (2 * workers + 1) * counted["gradients"]
    return held, {
        "sampling": counted["sampling"],
        "gradients": counted["before"] + counted["activations"] * workers + waiting,
        "update": counted["gradients"] + counted["update"] - counted["moments"],
    }


def _of_ranks(recipe: Recipe, counted: Mapping[str, int], device: str) -> tuple[dict[str, int], dict[str, int]]:
    """Held, and needed by phases, by a rank on its GPU, or by all of them together on a CPU."""
    trainer, ranks = recipe.trainer, rank_count(recipe)
    size = models.dtype_named(recipe.model.dtype).itemsize
    trained, share = counted["trained"], -(-counted["trained"] // ranks)
    here = 1 if device == "cpu" or not trainer.offload else 0
    held = {
        "weights": counted["weights"] // (ranks if trainer.zero_stage == 3 else 1),
        "masters": 4 * share * here,
        "moments": counted["moments"] // ranks * here,
        # At stage 1 in the weights' dtype. At stage 2 they are added up on the GPU, wherever the masters are.
        "gradients": size * trained * here
        if trainer.zero_stage == 1
        else 4 * share * (1 if trainer.zero_stage == 2 and size < 4 else here),
    }
    gathered = min(size * _GATHERED, counted["weights"]) if trainer.zero_stage == 3 else 0
    reduced = size * (_REDUCED if device == "cuda" else min(_REDUCED, trained))
    phases = {
        "sampling": 0,
        "gradients": counted["activations"] + gathered + reduced,
        # A copy of the share's gradients, and AdamW's denominators.
        "update": 2 * 4 * share * here,
    }
    if device == "cuda":
        return held, phases
    # A critic with weights of its own, and an engine that is not vLLM, are in the driver.
    alone = {"cache": counted["cache"], "critic": counted["critic"]}
    together = {name: ranks * n for name, n in phases.items()} | {"sampling": counted["sampling"]}
    return {name: ranks * n for name, n in held.items()} | alone, together


def _sharded(recipe: Recipe) -> bool:
    return recipe.trainer.backend == "deepspeed"


def _workers(recipe: Recipe, config: Any, device: str) -> int:
    """Threads that differentiate micro-batches at the same time."""
    if device != "cpu":
        return 1
    with torch.device("meta"):
        own = models.one_thread_workers(AutoModelForCausalLM.from_config(config), device)
    return recipe.trainer.micro_batch_workers or own


def _several(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def rank_count(recipe: Recipe) -> int:
    """How many ranks the trainer has, as far as this machine can tell."""
    return (recipe.trainer.ranks or torch.cuda.device_count() or 2) if _sharded(recipe) else 1


def engines_beside(recipe: Recipe) -> int:
    """How many engines a GPU has at most beside its rank."""
    rollout, ranks = recipe.rollout, rank_count(recipe)
    if rollout.engine != "vllm":
        return 0
    alone = recipe.cluster.address == "none" and torch.cuda.device_count() == 1
    together = recipe.cluster.colocated or alone
    return -(-rollout.engines * rollout.tensor_parallel // ranks) if together else 0


def engine_share(recipe: Recipe) -> int:
    """Bytes of a GPU that a vLLM engine takes: weights, what a step needs, and keys and values in all the rest."""
    share = recipe.rollout.engine_args.get("gpu_memory_utilization", EngineConfig.memory_share)
    return int(share * whole_gpu())


def whole_gpu() -> int:
    """Bytes of the GPU here, free or not."""
    return int(torch.cuda.mem_get_info()[1])


def with_layers(config: Any, layers: int) -> Any:
    """The config of the same model with so many layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config


def _tried(recipe: Recipe, config: Any, lengths: Lengths, device: str) -> dict[str, int]:
    """Bytes that one process without others takes, by what they are for; `trained` are elements."""
    live = _Live()
    with live:
        model = without_data(recipe, config)
        counted = {"weights": live.now}
        trainer = TorchTrainer(model, objective(recipe.objective), recipe.optim, recipe.trainer.micro_batch_tokens, 1)
        trainer.token_logprobs.chunk = CHUNK[device]
        counted["masters"] = live.now - sum(counted.values())
        decoder = _decoder(model, recipe, lengths) if recipe.rollout.engine == "torch" else None
        counted["cache"] = live.now - sum(counted.values())
        with live.phase() as sampling:
            if decoder is not None:
                _sample(recipe, decoder, lengths, live, device)
        _add_gradients(model)
        gradients = live.now - sum(counted.values())
        with live.phase() as update:
            trainer.optimizer.step(1e-6)
        counted["moments"] = live.now - sum(counted.values())
        critic = _critic(recipe, config, model)
        counted["critic"] = live.now - sum(counted.values())
        rollouts = recipe.rollout.tasks * recipe.rollout.group_size // recipe.trainer.updates_per_iteration
        if _sharded(recipe) or rollouts * lengths.whole > recipe.trainer.micro_batch_tokens:
            _add_gradients(model)  # those of the micro-batches before
        before = live.now - sum(counted.values())
        with live.phase() as training:
            live.training = True
            trainer.accumulate(_batch(recipe, lengths))
        del critic
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    needed = {"sampling": sampling.peak, "before": before, "activations": training.peak, "update": update.peak}
    return counted | needed | {"gradients": gradients, "trained": trained}


def _critic(recipe: Recipe, config: Any, model: Any) -> list[Any]:
    """What a critic holds on to: copies of the weights, an optimizer of its own."""
    if not recipe.critic.enabled:
        return []
    held = [without_data(recipe, config)] if recipe.critic.reference else []
    judging = model if recipe.critic.weights == "shared" else without_data(recipe, config)
    held.append(judging)
    if recipe.critic.recalibrate == "step":
        optimizer = ModelOptimizer(judging, recipe.critic.optim)
        _add_gradients(judging)
        optimizer.step(1e-6)
        held.append(optimizer)
    return held


def _add_gradients(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)


class _Phase:
    peak = 0
    """Bytes above those alive when the phase began."""


def _sum_of_gradients(terms: tuple[Any, ...]) -> bool:
    """Whether this is a backward pass adding what reaches a tensor from two sides: in place, but not where it is
    watched."""
    alike = all(isinstance(x, torch.Tensor) and x.shape == terms[0].shape for x in terms)
    return alike and not torch.is_grad_enabled()


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that are alive, each from the operation that makes it until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.training = False
        self._known: dict[int, int] = {}

    @contextmanager
    def phase(self) -> Iterator[_Phase]:
        found, start = _Phase(), self.now
        self.peak = start
        yield found
        found.peak = self.peak - start

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.training and func is torch.ops.aten.add.Tensor and _sum_of_gradients(args):
            return args[0]
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known[key] = storage.nbytes()
            self.now += self._known[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.now -= self._known.pop(key)


def without_data(recipe: Recipe, config: Any) -> Any:
    """The recipe's model, made of tensors without data that claim to be on a CPU."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=models.dtype_named(recipe.model.dtype)).eval()
        if recipe.model.lora is not None:
            lora.attach(model, recipe.model.lora, recipe.seed)
    if recipe.trainer.gradient_checkpointing:
        models.checkpoint_layers(model)
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), dict[int, torch.Tensor]()

    def replaced(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in made:  # a tied weight stays one weight
            with mode:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype)
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        return made[id(tensor)]

    for module in list(model.modules()):
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = replaced(tensor)
    return model


def _batch(recipe: Recipe, lengths: Lengths) -> Any:
    """An update's batch of rollouts of full length, cut to about one micro-batch: the others are like it."""
    size = recipe.rollout.group_size
    groups = -(-recipe.rollout.tasks // recipe.trainer.updates_per_iteration)
    rows = max(1, recipe.trainer.micro_batch_tokens // lengths.whole)
    response = Segment("policy", (1,) * lengths.response, (0.0,) * lengths.response, 1.0)
    scored = [
        ScoredGroup(
            Task(str(group)),
            tuple(Rollout(Task(""), k, (group + 1,) * lengths.prompt, (response,), End.STOP, ()) for k in range(count)),
            (0.0,) * count,
            (0.0,) * count,
        )
        for group, count in enumerate(min(size, rows - at) for at in range(0, min(rows, groups * size), size))
    ]
    text = None
    if recipe.ptx.weight.start or recipe.ptx.weight.end:
        example = Example((1,) * lengths.whole, lengths.prompt)
        text = text_batch([example] * max(1, recipe.ptx.tokens // lengths.whole), 1.0, 0)
    (batch,) = batches(scored, objective(recipe.objective), 1, [text], pad_id=0)
    return batch


def _decoder(model: Any, recipe: Recipe, lengths: Lengths) -> Decoder:
    """The sampler's decoder when every slot holds a rollout that lacks its last token.

    Rows that enter late start further right, and the cache moves left only where a quarter of it has become free: it
    grows until the longest rollout is three quarters of it.
    """
    config, slots = model.config.get_text_config(), recipe.rollout.slots
    decoder = Decoder(model, 0, slots)
    cache = decoder._cache
    late = recipe.rollout.tasks * recipe.rollout.group_size > slots
    cache.reserve(lengths.prompt + 1, 0)
    while cache.columns < lengths.whole * (4 / 3 if late else 1):
        cache.reserve(cache.columns + 1, 0)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    like = next(model.parameters()).new_empty((1, config.num_key_value_heads, 1, size))
    for layer in cache.layers:
        layer.lazy_initialization(like, like)
    cache.now = lengths.whole - 1
    decoder._length[:] = cache.now
    decoder._said[:] = 1
    request = Request("", (0,), (0,) * slots, 1, 1.0, frozenset())
    decoder._names = [(request, row) for row in range(slots)]
    return decoder


@torch.no_grad()
def _sample(recipe: Recipe, decoder: Decoder, lengths: Lengths, live: _Live, device: str) -> None:
    """The prompts of all slots, and the last step of decoding."""
    prompts = min(recipe.rollout.tasks, -(-decoder.slots // recipe.rollout.group_size))
    prefill(decoder.model, [[0] * lengths.prompt] * prompts, 0)
    logits_S_V = decoder._decode()
    vocabulary = logits_S_V.shape[1]
    with live.phase() as drawing:  # looks at the numbers, so on a row that has some
        draw(torch.zeros((1, vocabulary)), np.ones(1, np.float32), np.zeros(1))
    rows = min(decoder.slots, max(AT_ONCE[device] // vocabulary, 1))
    live.peak = max(live.peak, live.now + (drawing.peak - 4 * vocabulary) * rows)


def available(device: str) -> int:
    """Bytes that a new process may still take on `device`."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, StopIteration):  # not Linux: all there is
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    with suppress(OSError, ValueError):  # a container's own limit; "max" is none
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


def remedies(recipe: Recipe, config: Any, lengths: Lengths, device: str, room: int) -> tuple[list[str], Estimate]:
    """What to override, the gentlest first, until the run fits into `room` bytes; and the estimate then, which may
    still be above it. A change that would not help, or is not allowed here, is left out."""
    found: list[str] = []
    best = estimate(recipe, config, lengths, device)
    for override in _changes(recipe, lengths, device):
        if best.peak <= room:
            break
        try:
            tried = resolve(Recipe, to_dict(recipe), [override])
        except UserError:  # It does not go with the rest, such as bfloat16 with a critic that has updates of its own.
            continue
        now = estimate(tried, config, lengths, device)
        if now.peak < 0.98 * best.peak:
            found, recipe, best = [*found, override], tried, now
    return found, best


def _changes(recipe: Recipe, lengths: Lengths, device: str) -> Iterator[str]:
    """Overrides that save memory: first those that change nothing but the time."""
    tokens = max(lengths.whole, min(recipe.trainer.micro_batch_tokens // 4, 4096))
    if tokens < recipe.trainer.micro_batch_tokens:
        yield f"trainer.micro_batch_tokens={tokens}"
    if not recipe.trainer.gradient_checkpointing:
        yield "trainer.gradient_checkpointing=true"
    if recipe.rollout.slots > 16:
        yield f"rollout.slots={max(16, recipe.rollout.slots // 4)}"
    if _sharded(recipe) and recipe.trainer.zero_stage < 3:
        yield "trainer.zero_stage=3"
    if recipe.model.dtype != "bfloat16" and device == "cuda":
        yield "model.dtype=bfloat16"
    if _sharded(recipe) and device == "cuda" and not recipe.trainer.offload:
        yield "trainer.offload=true"
    if recipe.model.lora is None:
        yield "model.lora.rank=16"
    if recipe.model.dtype != "bfloat16" and device == "cpu":  # slow there
        yield "model.dtype=bfloat16"
