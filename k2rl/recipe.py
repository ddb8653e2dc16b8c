"""The typed recipe of a run: every key, its default, and what may not be combined.

One file, no inheritance between files; `key=value` on the command line overrides it; the resolved recipe is saved
beside the run. An unknown key, a value out of range, and a key without effect in the chosen set-up are errors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from k2rl import assets, budget
from k2rl.budget import BudgetConfig
from k2rl.errors import UserError, did_you_mean
from k2rl.schedules import Schedule


@dataclass
class ModelConfig:
    """`path`: a transformers folder, a hub id, or `nano`. `dtype`: auto, float32, bfloat16 or float16."""

    path: str = "nano"
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False


@dataclass
class EnvSpec:
    """One environment of the mixture, under a name of the user's choice.

    `weight` is its share of the tasks; `pool` cuts an endless task stream; `temperature` overrides the run's;
    `reward_range` is required for plain gymnasium envs and maps their returns to [0, 1].
    """

    id: str = "???"
    args: dict[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    pool: int = 2000
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    temperature: Schedule | None = None
    reward_range: list[float] | None = None


@dataclass
class RunConfig:
    """`iterations` of RL, or of SFT steps; checkpoints every so many of them; `checkpoints_kept` newest stay.

    `eval_tasks` held-out tasks per env are evaluated before and after, and every `eval_every` iterations (0: not).
    `max_failure_rate`: the run stops when a larger share of an iteration's rollouts has no verdict.
    """

    iterations: int = 100
    checkpoint_every: int = 50
    checkpoints_kept: int = 2
    eval_tasks: int = 200
    eval_every: int = 0
    max_failure_rate: float = 0.2
    threads: int | None = None


@dataclass
class RolloutConfig:
    """`tasks` prompts per iteration, `group_size` responses each; `slots` rows decode at once; `workers` threads
    step the environments. `pause_share` below 1 stops an iteration's rollouts once that share is done and
    resumes the rest first in the next one."""

    tasks: int = 16
    group_size: int = 16
    engine: str = "torch"
    slots: int = 256
    workers: int = 2
    pause_share: float = 1.0


@dataclass
class ObjectiveConfig:
    """`name`: k2 or grpo. `tau` (k2) is the strength of the squared log-ratio; `clip` (grpo) the ratio's range.
    Unset keys take the objective's default; a key the objective does not use is an error."""

    name: str = "k2"
    tau: float | None = None
    clip: float | None = None


@dataclass
class OptimConfig:
    """`name`: adamw, or muon (hidden matrices by Muon, the rest by AdamW at `adamw_lr_ratio` times the lr).
    `reset_each_iteration` drops the moments at each iteration (K1.5 does; K2 is silent)."""

    name: str = "adamw"
    lr: Schedule = field(default_factory=lambda: Schedule(start=1e-5))
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    adamw_lr_ratio: float = 1.0
    reset_each_iteration: bool = False


@dataclass
class TrainerConfig:
    """`updates_per_iteration` mini-batches of whole groups with pi_old fixed; `micro_batch_tokens` bounds the
    padded tokens of one forward and backward pass."""

    backend: str = "torch"
    updates_per_iteration: int = 2
    micro_batch_tokens: int = 8192


@dataclass
class PtxConfig:
    """Auxiliary next-token loss. `data`: `gold` (demonstrations of the recipe's own envs) or a JSONL of
    `{"prompt", "response"}` rows; `tokens` per update; `weight` against the policy loss (0: off)."""

    weight: Schedule = field(default_factory=lambda: Schedule(start=0.0))
    data: str = "gold"
    tokens: int = 2048


@dataclass
class CriticConfig:
    """The rubric critic."""

    enabled: bool = False


@dataclass
class ClusterConfig:
    """Where the run's processes live."""

    address: str = "none"


@dataclass
class Recipe:
    """Everything `k2rl train` needs."""

    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    envs: dict[str, EnvSpec] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    temperature: Schedule = field(default_factory=Schedule)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    ptx: PtxConfig = field(default_factory=PtxConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass
class ScratchConfig:
    """A new Llama-type model with its own byte-level BPE, for `k2rl sft` without `model.path`."""

    hidden_size: int = 128
    layers: int = 4
    head_size: int = 32
    vocab_size: int = 384
    max_length: int = 1024


@dataclass
class SftStop:
    """SFT ends when the held-out loss fell by less than `improvement` over the last `share` of the steps so far
    (but not before `min_minutes`), or at `max_minutes`."""

    improvement: float = 0.01
    share: float = 0.2
    min_minutes: float = 2.0
    max_minutes: float = 30.0


@dataclass
class SftModelConfig(ModelConfig):
    """As `model` of a training recipe; without a path, `scratch` makes a new model."""

    path: str | None = None  # type: ignore[assignment]
    scratch: ScratchConfig = field(default_factory=ScratchConfig)


@dataclass
class SftConfig:
    """`pool` of each env bounds its demonstrations. `ema` averages the weights over about that many steps; the
    average is what is evaluated and saved (in `save_dtype`)."""

    batch_tokens: int = 2048
    micro_batch_tokens: int = 1024
    warmup_steps: int = 100
    held_out: int = 300
    eval_seconds: float = 30.0
    ema: int = 500
    save_dtype: str = "float32"
    stop: SftStop = field(default_factory=SftStop)


@dataclass
class SftRecipe:
    """Everything `k2rl sft` needs: demonstrations come from the envs' `gold`."""

    seed: int = 0
    model: SftModelConfig = field(default_factory=SftModelConfig)
    envs: dict[str, EnvSpec] = field(default_factory=dict)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=Schedule(start=1e-3, warmup=0.0)))
    sft: SftConfig = field(default_factory=SftConfig)
    threads: int | None = None


R = TypeVar("R", Recipe, SftRecipe)


def load(schema: type[R], name: str, overrides: Sequence[str] = ()) -> R:
    """Read a recipe by shipped name or path, apply `key=value` overrides, and check it.

    Raises:
        UserError: not found, not YAML, unknown key, wrong type, value out of range, or a key without effect.
    """
    path = assets.recipe(name)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys, this is a {type(data).__name__}")
    return resolve(schema, data, overrides, source=str(path))


def resolve(schema: type[R], data: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> R:
    """A checked recipe from plain data and `key=value` overrides. Raises `UserError` as `load` does."""
    _check_keys(schema, data, "", source)
    merged: Any = OmegaConf.create(dict(data))  # Its type has other names in other versions of omegaconf.
    for override in overrides:
        if "=" not in override:
            raise UserError(f"override {override!r}: write key=value, such as run.iterations=10")
        try:
            layer = OmegaConf.from_dotlist([override])
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise UserError(f"override {override!r}: {str(error).splitlines()[0]}") from None
        _check_keys(schema, OmegaConf.to_container(layer), "", f"override {override!r}")
        key = override.partition("=")[0]
        if key.endswith(".args") and OmegaConf.select(merged, key) is not None:
            # An env's arguments given as a whole replace the old ones: they may belong to another env.
            OmegaConf.update(merged, key, {}, merge=False)
        merged = OmegaConf.merge(merged, layer)
    try:
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), merged))
    except MissingMandatoryValue as error:
        raise UserError(f"{source}: {error.full_key} is missing: it has no default") from None
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None)
        message = str(getattr(error, "msg", None) or error).splitlines()[0]
        raise UserError(f"{source}: {where + ': ' if where else ''}{message}") from None
    assert isinstance(recipe, schema)
    problems = _problems(recipe)
    if problems:
        raise UserError(f"{source}: {problems[0]}")
    return recipe


def to_yaml(recipe: Recipe | SftRecipe) -> str:
    """The resolved recipe, as saved beside a run."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def to_dict(recipe: Recipe | SftRecipe) -> dict[str, Any]:
    """The resolved recipe as plain data."""
    data = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(data, dict)
    return {str(k): v for k, v in data.items()}


def differences(a: Recipe, b: Recipe) -> list[str]:
    """The dotted keys in which two recipes differ."""

    def flat(value: Any, prefix: str) -> dict[str, Any]:
        if isinstance(value, Mapping) and value:
            return {k: v for key, sub in value.items() for k, v in flat(sub, f"{prefix}.{key}").items()}
        return {prefix[1:]: value}

    left, right = flat(to_dict(a), ""), flat(to_dict(b), "")
    return sorted(k for k in left.keys() | right.keys() if left.get(k, math.nan) != right.get(k, math.nan))


def _check_keys(schema: Any, data: Any, prefix: str, source: str) -> None:
    """Refuse keys the schema does not have, naming the closest one it has."""
    args = [a for a in get_args(schema) if a is not type(None)]
    named = get_origin(schema) is dict
    schema = next((a for a in args if dataclasses.is_dataclass(a)), schema)
    if not dataclasses.is_dataclass(schema) or data is None:
        return
    hints = get_type_hints(schema)
    if not isinstance(data, Mapping):
        keys = f"names, each with {', '.join(hints)}" if named else ", ".join(hints)
        raise UserError(f"{source}: {prefix[:-1]} is {data!r}: it is a mapping of {keys}")
    if named:
        for key, value in data.items():
            _check_keys(schema, value, f"{prefix}{key}.", source)
        return
    for key, value in data.items():
        if key not in hints:
            raise UserError(
                f"{source}: unknown key {prefix}{key}{did_you_mean(str(key), hints)}: "
                f"allowed here are {', '.join(hints)}"
            )
        _check_keys(hints[key], value, f"{prefix}{key}.", source)


def _problems(recipe: Recipe | SftRecipe) -> list[str]:
    found = []
    if not recipe.envs:
        found.append("envs is empty: name at least one environment, such as envs.math.id=math (see `k2rl env list`)")
    for name, spec in recipe.envs.items():
        found += _env_problems(name, spec)
    schedules = {"optim.lr": recipe.optim.lr}
    if isinstance(recipe, Recipe):
        schedules |= {"temperature": recipe.temperature, "ptx.weight": recipe.ptx.weight}
        found += _train_problems(recipe)
    else:
        found += _sft_problems(recipe)
    found += _optim_problems(recipe.optim)
    found += _one_of("optim.name", recipe.optim.name, ["adamw", "muon"])
    if recipe.optim.name == "adamw" and recipe.optim.adamw_lr_ratio != 1.0:
        found.append("optim.adamw_lr_ratio has no effect with optim.name=adamw: it belongs to muon")
    for key, schedule in schedules.items():
        problem = schedule.problem()
        if problem:
            found.append(f"{key}.{problem}")
    return found


def _optim_problems(optim: OptimConfig) -> list[str]:
    found = _at_least(
        {
            "optim.lr.start": (optim.lr.start, 0),
            "optim.weight_decay": (optim.weight_decay, 0),
            "optim.grad_clip": (optim.grad_clip, 0),
        }
    )
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        found.append(f"optim.betas is {optim.betas}: give two numbers in [0, 1)")
    return found


def _env_problems(name: str, spec: EnvSpec) -> list[str]:
    prefix = f"envs.{name}"
    found = [f"{prefix}.budget.{p}" for p in budget.problems(spec.budget)]
    if not name or "/" in name or "." in name:
        found.append(f"{prefix}: a name has no slash and no dot, it becomes part of file and metric names")
    if not 0 < spec.weight < math.inf:
        found.append(f"{prefix}.weight is {spec.weight}: it must be above 0")
    if spec.pool < 1:
        found.append(f"{prefix}.pool is {spec.pool}: it must be 1 or more")
    if spec.temperature is not None:
        problem = spec.temperature.problem()
        found += (
            [f"{prefix}.temperature.{problem}"]
            if problem
            else _temperature_problems(f"{prefix}.temperature", spec.temperature)
        )
    if spec.reward_range is not None and (
        len(spec.reward_range) != 2 or not spec.reward_range[0] < spec.reward_range[1]
    ):
        found.append(f"{prefix}.reward_range is {spec.reward_range}: give [lowest, highest]")
    return found


def _temperature_problems(key: str, schedule: Schedule) -> list[str]:
    values = (schedule.start, schedule.start if schedule.end is None else schedule.end)
    if min(values) <= 0 or schedule.warmup > 0:
        return [f"{key}: a training temperature stays above 0 and has no warmup"]
    return []


def _one_of(key: str, value: str, allowed: Sequence[str]) -> list[str]:
    return [] if value in allowed else [f"{key} is {value!r}: this version has {', '.join(allowed)}"]


def _at_least(values: Mapping[str, tuple[float, float]]) -> list[str]:
    return [f"{key} is {value}: it must be {least} or more" for key, (value, least) in values.items() if value < least]


def _train_problems(recipe: Recipe) -> list[str]:
    run, rollout, trainer, objective = recipe.run, recipe.rollout, recipe.trainer, recipe.objective
    found = _at_least(
        {
            "run.iterations": (run.iterations, 0),
            "run.checkpoint_every": (run.checkpoint_every, 1),
            "run.checkpoints_kept": (run.checkpoints_kept, 1),
            "run.eval_tasks": (run.eval_tasks, 0),
            "run.eval_every": (run.eval_every, 0),
            "rollout.tasks": (rollout.tasks, 1),
            "rollout.group_size": (rollout.group_size, 2),
            "rollout.slots": (rollout.slots, 1),
            "rollout.workers": (rollout.workers, 1),
            "trainer.updates_per_iteration": (trainer.updates_per_iteration, 1),
            "trainer.micro_batch_tokens": (trainer.micro_batch_tokens, 1),
            "ptx.tokens": (recipe.ptx.tokens, 1),
            "ptx.weight.start": (recipe.ptx.weight.start, 0),
        }
    )
    found += _one_of("rollout.engine", rollout.engine, ["torch"])
    found += _one_of("trainer.backend", trainer.backend, ["torch"])
    found += _one_of("cluster.address", recipe.cluster.address, ["none"])
    found += _one_of("objective.name", objective.name, ["k2", "grpo"])
    found += _one_of("model.dtype", recipe.model.dtype, ["auto", "float32", "bfloat16", "float16"])
    found += _temperature_problems("temperature", recipe.temperature)
    if recipe.critic.enabled:
        found.append("critic.enabled is true: this version has no critic; set it to false")
    if not 0 < rollout.pause_share <= 1:
        found.append(f"rollout.pause_share is {rollout.pause_share}: it lies in (0, 1]")
    if not 0 <= run.max_failure_rate <= 1:
        found.append(f"run.max_failure_rate is {run.max_failure_rate}: it lies in [0, 1]")
    if trainer.updates_per_iteration > rollout.tasks:
        found.append(
            f"trainer.updates_per_iteration is {trainer.updates_per_iteration} with rollout.tasks={rollout.tasks}: "
            "a mini-batch holds at least one whole group"
        )
    for key, owner in (("tau", "k2"), ("clip", "grpo")):
        value = getattr(objective, key)
        if value is not None and objective.name != owner:
            found.append(f"objective.{key} has no effect with objective.name={objective.name}: it belongs to {owner}")
        elif value is not None and value <= 0:
            found.append(f"objective.{key} is {value}: it must be above 0")
    return found


def _sft_problems(recipe: SftRecipe) -> list[str]:
    sft, stop, scratch = recipe.sft, recipe.sft.stop, recipe.model.scratch
    found = _at_least(
        {
            "sft.batch_tokens": (sft.batch_tokens, 1),
            "sft.micro_batch_tokens": (sft.micro_batch_tokens, 1),
            "sft.held_out": (sft.held_out, 1),
            "sft.eval_seconds": (sft.eval_seconds, 0.1),
            "sft.ema": (sft.ema, 1),
            "sft.warmup_steps": (sft.warmup_steps, 1),
            "sft.stop.min_minutes": (stop.min_minutes, 0),
            "sft.stop.max_minutes": (stop.max_minutes, 0),
            "model.scratch.layers": (scratch.layers, 1),
            "model.scratch.vocab_size": (scratch.vocab_size, 300),
        }
    )
    found += _one_of("sft.save_dtype", sft.save_dtype, ["float32", "bfloat16", "float16"])
    if scratch.hidden_size % scratch.head_size:
        found.append(
            f"model.scratch.hidden_size is {scratch.hidden_size}: it must be a multiple of head_size "
            f"({scratch.head_size})"
        )
    if not (0 < stop.share < 1 and 0 <= stop.improvement < 1):
        found.append("sft.stop: share lies in (0, 1) and improvement in [0, 1)")
    return found


def save(recipe: Recipe | SftRecipe, path: Path) -> None:
    """Write the resolved recipe."""
    path.write_text(to_yaml(recipe), encoding="utf-8")
