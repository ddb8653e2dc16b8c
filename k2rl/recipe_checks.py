"""What may not stand in a recipe: values out of range, and keys without effect in the chosen set-up."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from k2rl import budget
from k2rl.engines.vllm_plugin import OWN, TEMPERATURES
from k2rl.errors import UserError
from k2rl.schedules import Schedule
from k2rl.trackers import TRACKERS

if TYPE_CHECKING:
    from k2rl.recipe import EnvSpec, LoraConfig, OptimConfig, Recipe, RunConfig, SftRecipe

ORDERS = ("uniform", "prioritised", "easy_to_hard")


def train_problems(recipe: Recipe) -> list[str]:
    """What is wrong with a training recipe: one line each, the key first."""
    schedules = {"optim.lr": recipe.optim.lr, "temperature": recipe.temperature, "ptx.weight": recipe.ptx.weight}
    return [
        *_envs_problems(recipe.envs),
        *_train_problems(recipe),
        *_optim_problems(recipe.optim),
        *_schedule_problems(schedules),
    ]


def sft_problems(recipe: SftRecipe) -> list[str]:
    """What is wrong with an SFT recipe: one line each, the key first."""
    return [
        *_envs_problems(recipe.envs),
        *_difficulty_in_sft(recipe.envs),
        *_sft_problems(recipe),
        *_optim_problems(recipe.optim),
        *_schedule_problems({"optim.lr": recipe.optim.lr}),
    ]


def _envs_problems(envs: Mapping[str, EnvSpec]) -> list[str]:
    if not envs:
        return ["envs is empty: name at least one environment, such as envs.math.id=math (see `k2rl env list`)"]
    return [problem for name, spec in envs.items() for problem in _env_problems(name, spec)]


def _schedule_problems(schedules: Mapping[str, Schedule]) -> list[str]:
    return [f"{key}.{problem}" for key, schedule in schedules.items() if (problem := schedule.problem())]


def _optim_problems(optim: OptimConfig) -> list[str]:
    found = _at_least(
        {
            "optim.lr.start": (optim.lr.start, 0),
            "optim.lr.end": (optim.lr.end or 0.0, 0),
            "optim.weight_decay": (optim.weight_decay, 0),
            "optim.grad_clip": (optim.grad_clip, 0),
        }
    )
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        found.append(f"optim.betas is {optim.betas}: give two numbers in [0, 1)")
    if optim.name == "adamw" and optim.adamw_lr_ratio != 1.0:
        found.append("optim.adamw_lr_ratio has no effect with optim.name=adamw: it belongs to muon")
    return found + _one_of("optim.name", optim.name, ["adamw", "muon"])


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
    return found + _difficulty_problems(prefix, spec)


def _difficulty_problems(prefix: str, spec: EnvSpec) -> list[str]:
    found = _one_of(f"{prefix}.order", spec.order, ORDERS)
    band = spec.pass_rate
    if band is not None and (len(band) != 2 or not 0 <= band[0] <= band[1] <= 1):
        found.append(f"{prefix}.pass_rate is {band}: give [lowest, highest], each in [0, 1]")
    if band is not None and spec.measured is None:
        found.append(
            f"{prefix}.pass_rate needs {prefix}.measured: a file of pass rates, which `k2rl measure RECIPE --out FILE` "
            "writes"
        )
    if spec.budget.estimated and spec.measured is None:
        key = "mode=toggle" if spec.budget.mode == "toggle" else "percentile"
        found.append(
            f"{prefix}.budget.{key} needs {prefix}.measured: a file with the lengths of correct answers, which "
            "`k2rl measure RECIPE --out FILE` writes"
        )
    if spec.measured is not None and band is None and spec.order == "uniform" and not spec.budget.estimated:
        found.append(
            f"{prefix}.measured has no effect by itself: set {prefix}.pass_rate, {prefix}.budget.percentile, or "
            f"{prefix}.order to prioritised or easy_to_hard"
        )
    return found


def _difficulty_in_sft(envs: Mapping[str, EnvSpec]) -> list[str]:
    return [
        f"envs.{name}.{key} has no effect in SFT: it belongs to `k2rl train`"
        for name, spec in envs.items()
        for key, given in (
            ("measured", spec.measured is not None),
            ("pass_rate", spec.pass_rate is not None),
            ("order", spec.order != "uniform"),
        )
        if given
    ]


def _temperature_problems(key: str, schedule: Schedule) -> list[str]:
    values = (schedule.start, schedule.start if schedule.end is None else schedule.end)
    if min(values) <= 0 or schedule.warmup > 0:
        return [f"{key}: a training temperature stays above 0 and has no warmup"]
    return []


def _given(count: int | None) -> int:
    """A count, where null leaves it to the machine."""
    return 1 if count is None else count


def _one_of(key: str, value: str, allowed: Sequence[str]) -> list[str]:
    return [] if value in allowed else [f"{key} is {value!r}: this version has {', '.join(allowed)}"]


def _at_least(values: Mapping[str, tuple[float, float]]) -> list[str]:
    return [
        f"{key} is {value}: it must be {least} or more"
        for key, (value, least) in values.items()
        if not least <= value < math.inf
    ]


def _train_problems(recipe: Recipe) -> list[str]:
    run, rollout, trainer = recipe.run, recipe.rollout, recipe.trainer
    found = _at_least(
        {
            "run.iterations": (run.iterations, 0),
            "run.threads": (_given(run.threads), 1),
            "ptx.weight.end": (recipe.ptx.weight.end or 0.0, 0),
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
            "trainer.micro_batch_workers": (
                1 if trainer.micro_batch_workers is None else trainer.micro_batch_workers,
                1,
            ),
            "ptx.tokens": (recipe.ptx.tokens, 1),
            "ptx.weight.start": (recipe.ptx.weight.start, 0),
        }
    )
    found += _one_of("rollout.engine", rollout.engine, ["torch", "vllm"])
    if rollout.engine != "vllm":
        given = {"engine_args": rollout.engine_args, "engines": rollout.engines > 1}
        given["tensor_parallel"] = rollout.tensor_parallel > 1
        found += [
            f"rollout.{key} has no effect with rollout.engine=torch: leave it out, or set it to vllm"
            for key, of_note in given.items()
            if of_note
        ]
    if own := sorted(OWN & set(rollout.engine_args)):
        found.append(f"rollout.engine_args.{own[0]} is k2rl's to set: leave it out")
    if rollout.engine == "vllm":
        heats = [recipe.temperature, *(s.temperature for s in recipe.envs.values() if s.temperature is not None)]
        ends = [end for heat in heats for end in (heat.start, heat.end) if end is not None]
        if not TEMPERATURES[0] <= min(ends) <= max(ends) <= TEMPERATURES[1]:
            found.append(f"temperature: vLLM samples between {TEMPERATURES[0]} and {TEMPERATURES[1]:g}")
    found += _cluster_problems(recipe)
    found += _objective_problems(recipe.objective) or _correction_problems(recipe)
    found += _one_of("model.dtype", recipe.model.dtype, ["auto", "float32", "bfloat16"])
    found += _lora_problems(recipe.model.lora)
    found += _temperature_problems("temperature", recipe.temperature)
    found += _critic_problems(recipe)
    found += _tracker_problems(run)
    if not 0 < rollout.pause_share <= 1:
        found.append(f"rollout.pause_share is {rollout.pause_share}: it lies in (0, 1]")
    if not 0 < run.patience_s <= run.stuck_s < math.inf:
        found.append(
            f"run.patience_s is {run.patience_s} and run.stuck_s is {run.stuck_s}: both are above 0, and patience_s is "
            "not the larger one"
        )
    if not 0 <= run.max_failure_rate <= 1:
        found.append(f"run.max_failure_rate is {run.max_failure_rate}: it lies in [0, 1]")
    if trainer.updates_per_iteration > rollout.tasks:
        found.append(
            f"trainer.updates_per_iteration is {trainer.updates_per_iteration} with rollout.tasks={rollout.tasks}: "
            "a mini-batch holds at least one whole group"
        )
    return found


def _tracker_problems(run: RunConfig) -> list[str]:
    found = [problem for name in run.trackers for problem in _one_of("run.trackers", name, list(TRACKERS))]
    found += [
        f"run.trackers names {name} twice" for name in dict.fromkeys(run.trackers) if run.trackers.count(name) > 1
    ]
    for name, options in run.tracker_args.items():
        if name not in run.trackers:
            found.append(f"run.tracker_args.{name} has no effect: {name} is not among run.trackers={run.trackers}")
        elif not isinstance(options, Mapping):
            found.append(f"run.tracker_args.{name} is {options!r}: it is a mapping of options")
    return found


def _cluster_problems(recipe: Recipe) -> list[str]:
    cluster, trainer, rollout = recipe.cluster, recipe.trainer, recipe.rollout
    found = _one_of("trainer.backend", trainer.backend, ["torch", "deepspeed"])
    found += _at_least(
        {
            "rollout.engines": (rollout.engines, 1),
            "rollout.tensor_parallel": (rollout.tensor_parallel, 1),
            "trainer.ranks": (_given(trainer.ranks), 1),
            "cluster.hang_s": (cluster.hang_s, 1),
        }
    )
    if cluster.address not in ("none", "local", "auto") and not re.fullmatch(r"[^\s:]+:\d+", cluster.address):
        found.append(f"cluster.address is {cluster.address!r}: it is none, local, auto, or host:port")
    if trainer.zero_stage not in (1, 2, 3):
        found.append(f"trainer.zero_stage is {trainer.zero_stage}: it is 1, 2 or 3")
    alone = trainer.backend == "torch" and rollout.engine == "torch"
    if alone and cluster.address != "none":
        found.append("cluster.address has no effect with trainer.backend=torch and rollout.engine=torch")
    if trainer.backend == "torch":
        given = {"ranks": trainer.ranks is not None, "offload": trainer.offload}
        found += [
            f"trainer.{key} has no effect with trainer.backend=torch: leave it out, or set it to deepspeed"
            for key, of_note in given.items()
            if of_note
        ]
    elif recipe.critic.enabled and recipe.critic.weights == "shared" and recipe.critic.recalibrate == "step":
        found.append(
            "critic.recalibrate=step with critic.weights=shared needs trainer.backend=torch: set it to joint, or "
            "critic.weights to copy"
        )
    if trainer.backend == "deepspeed" and recipe.model.lora is not None and rollout.engine == "torch":
        found.append(
            "model.lora with trainer.backend=deepspeed needs rollout.engine=vllm, which is sent merged weights"
        )
    if rollout.tensor_parallel > 1 and cluster.colocated and cluster.address != "none":
        found.append("rollout.tensor_parallel above 1 in a Ray cluster needs cluster.colocated=false")
    return found


def _critic_problems(recipe: Recipe) -> list[str]:
    critic = recipe.critic
    found = _at_least(
        {
            "critic.reasoning_tokens": (critic.reasoning_tokens, 0),
            "critic.degradations": (critic.degradations, 0),
            "critic.coefficient": (critic.coefficient, 0),
            "critic.steps": (critic.steps, 1),
            "critic.pairs": (critic.pairs, 0),
            "critic.batch": (critic.batch, 1),
            "critic.window": (critic.window, 1),
            "critic.label": (critic.label, 0),
            "critic.text": (critic.text, 0),
        }
    )
    found += _one_of("critic.weights", critic.weights, ["shared", "copy"])
    found += _one_of("critic.recalibrate", critic.recalibrate, ["step", "joint", "none"])
    found += _one_of("critic.labels", critic.labels, ["verified", "random"])
    found += [f"critic.tournament.{problem}" for problem in critic.tournament.problems()]
    found += [f"critic.trust.{problem}" for problem in critic.trust.problems()]
    found += [f"critic.{problem}" for problem in _optim_problems(critic.optim)]
    found += _schedule_problems({"critic.optim.lr": critic.optim.lr})
    if not 0 <= critic.replay <= 1:
        found.append(f"critic.replay is {critic.replay}: it is a share in [0, 1]")
    for name in critic.held_out:
        if name not in recipe.envs:
            others = [other for other in critic.held_out if other in recipe.envs]
            found.append(
                f"critic.held_out: there is no env {name}; there are {', '.join(recipe.envs)}; without it: "
                f"critic.held_out=[{','.join(others)}]"
            )
    if critic.recalibrate == "joint" and critic.weights == "copy":
        found.append(
            "critic.recalibrate=joint has no effect on critic.weights=copy: take step or none, or weights=shared"
        )
    if critic.enabled and critic.gate and not critic.degradations:
        found.append("critic.degradations is 0: the gate would stay shut: give some, or set critic.gate=false")
    if critic.reasoning_tokens and critic.recalibrate != "none":
        found.append(
            "critic.reasoning_tokens needs critic.recalibrate=none: what is learned is a verdict without an argument, "
            "and the judge would stop arguing"
        )
    if critic.recalibrate != "none" and not critic.label and not critic.text:
        found.append("critic.label and critic.text are both 0: there is nothing to learn; set critic.recalibrate=none")
    if critic.recalibrate != "none" and not critic.pairs and not critic.replay:
        found.append("critic.pairs and critic.replay are both 0: nothing to learn from; set critic.recalibrate=none")
    if critic.optim.reset_each_iteration:
        found.append("critic.optim.reset_each_iteration has no effect: the critic's moments stay")
    if critic.tournament.anchor >= recipe.rollout.group_size:
        found.append(
            f"critic.tournament.anchor is {critic.tournament.anchor}: a group has responses 0 to "
            f"{recipe.rollout.group_size - 1}"
        )
    if critic.recalibrate == "step" and critic.weights == "shared" and recipe.model.dtype == "bfloat16":
        found.append(
            "critic.recalibrate=step on shared bfloat16 weights would have two float32 masters: take joint, or "
            "critic.weights=copy"
        )
    return found if critic.enabled else []


def _lora_problems(lora: LoraConfig | None) -> list[str]:
    if lora is None:
        return []
    found = _at_least({"model.lora.rank": (lora.rank, 1)})
    if not 0 < lora.alpha < math.inf:
        found.append(f"model.lora.alpha is {lora.alpha}: it must be above 0")
    named = isinstance(lora.modules, list) and lora.modules and all(isinstance(name, str) for name in lora.modules)
    if lora.modules != "all-linear" and not named:
        found.append(f"model.lora.modules is {lora.modules!r}: give all-linear, or a list such as [q_proj, v_proj]")
    return found


def _objective_problems(config: Mapping[str, Any]) -> list[str]:
    from k2rl.losses import objective

    try:
        objective(config)
    except UserError as error:
        return [str(error)]
    return []


def _correction_problems(recipe: Recipe) -> list[str]:
    """Of a recipe whose objective is known to be right."""
    from k2rl.losses import objective

    trainer, default = recipe.trainer, type(recipe.trainer)()
    found = _one_of("trainer.correction", trainer.correction, ["none", "truncated"])
    found += _at_least({"trainer.correction_cap": (trainer.correction_cap, 1)})
    if not 0 < trainer.mismatch_bound < math.inf:
        found.append(f"trainer.mismatch_bound is {trainer.mismatch_bound}: it must be above 0")
    if trainer.correction != "none":
        if objective(recipe.objective).masks_mismatch:
            found.append(
                f"trainer.correction={trainer.correction} would replace the log-probs by which objective.name="
                f"{recipe.objective['name']} masks tokens: leave it out, or take another objective"
            )
        return found
    if trainer.correction_cap != default.correction_cap:
        found.append("trainer.correction_cap has no effect without trainer.correction=truncated")
    if trainer.mismatch_bound != default.mismatch_bound and recipe.rollout.engine == "torch":
        found.append(
            "trainer.mismatch_bound has no effect with rollout.engine=torch, whose log-probs are the trainer's own, "
            "unless trainer.correction=truncated"
        )
    return found


def _sft_problems(recipe: SftRecipe) -> list[str]:
    sft, stop, scratch = recipe.sft, recipe.sft.stop, recipe.model.scratch
    found = _at_least(
        {
            "threads": (_given(recipe.threads), 1),
            "model.scratch.head_size": (scratch.head_size, 1),
            "model.scratch.hidden_size": (scratch.hidden_size, 1),
            "sft.batch_tokens": (sft.batch_tokens, 1),
            "sft.micro_batch_tokens": (sft.micro_batch_tokens, 1),
            "sft.micro_batch_workers": (_given(sft.micro_batch_workers), 1),
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
    for name, spec in recipe.envs.items():
        if spec.weight != round(spec.weight) or spec.weight < 1:
            found.append(
                f"envs.{name}.weight is {spec.weight:g}: in SFT it says how many times each demonstration is in the "
                "mixture, give 1, 2, …"
            )
    for name, share in sft.pairs.shares.items():
        if name not in recipe.envs:
            found.append(f"sft.pairs.shares.{name}: there is no such env; there are {', '.join(recipe.envs)}")
        if not 0 <= share <= 1:
            found.append(f"sft.pairs.shares.{name} is {share}: it is a share in [0, 1]")
    if sft.pairs.per_task < 1:
        found.append(f"sft.pairs.per_task is {sft.pairs.per_task}: it must be 1 or more")
    if not 0 < sft.pairs.label < math.inf:
        found.append(f"sft.pairs.label is {sft.pairs.label}: it must be above 0")
    # SFT averages the weights over many steps: bfloat16 has no room for what one of them adds.
    found += _one_of("model.dtype", recipe.model.dtype, ["auto", "float32"])
    found += _lora_problems(recipe.model.lora)
    if recipe.model.lora is not None and recipe.model.path is None:
        found.append("model.lora has no place without model.path: a new model has nothing to adapt")
    found += _one_of("sft.save_dtype", sft.save_dtype, ["float32", "bfloat16", "float16"])
    for key in ("end", "warmup"):
        if getattr(recipe.optim.lr, key):
            found.append(f"optim.lr.{key} has no effect in SFT: its rate is constant after sft.warmup_steps")
    if not sft.stages or not all(0 < factor < math.inf for factor in sft.stages):
        found.append(f"sft.stages is {sft.stages}: give at least one factor of the learning rate, each above 0")
    if not 0 <= sft.cooldown_share * (len(sft.stages) - 1) < 1:
        found.append(f"sft.cooldown_share is {sft.cooldown_share}: the stages after the first take less than all time")
    if len(sft.stages) == 1 and sft.cooldown_share != type(sft)().cooldown_share:
        found.append("sft.cooldown_share has no effect with a single stage in sft.stages")
    if scratch.head_size < 1:
        return found
    if scratch.hidden_size % scratch.head_size:
        found.append(
            f"model.scratch.hidden_size is {scratch.hidden_size}: it must be a multiple of head_size "
            f"({scratch.head_size})"
        )
    if not (0 < stop.share < 1 and 0 <= stop.improvement < 1):
        found.append("sft.stop: share lies in (0, 1) and improvement in [0, 1)")
    return found
