"""Would this recipe run here: the checks behind `k2rl doctor RECIPE`. No weights are loaded, nothing is set up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from k2rl import budget, memory, models, runlog, setup
from k2rl.critic.setup import COMPARISON, context_needed
from k2rl.curriculum import fitting, pool
from k2rl.doctor import Check
from k2rl.envpool import EnvPool
from k2rl.errors import UserError
from k2rl.memory import GIB, Estimate, Lengths
from k2rl.models import Description
from k2rl.recipe import Recipe
from k2rl.trackers import check_installed

T = TypeVar("T")

_TIGHT = 0.9


def examine(recipe: Recipe, run_dir: Path) -> tuple[list[Check], Estimate | None]:
    """Every check, in the order in which a run would meet them; and the estimate, where it got that far."""
    checks: list[Check] = []

    def attempt(what: str, work: Callable[[], tuple[T, str]]) -> T | None:
        try:
            value, found = work()
        except UserError as error:
            reason, _, fix = str(error).rpartition(": ")
            checks.append(Check(what, "broken", *((reason, fix) if reason else (fix, ""))))
            return None
        checks.append(Check(what, "ok", found))
        return value

    device = attempt("device", lambda: _device(recipe))
    if wanted := _wanted(recipe):
        attempt("processes", lambda: _processes(recipe, wanted))
    if recipe.run.trackers:
        attempt("trackers", lambda: _trackers(recipe))
    model = attempt("model", lambda: _model(recipe))
    envs = attempt("environments", lambda: _environments(recipe))
    if model is None or envs is None:
        return checks, None
    try:
        lengths = attempt("tasks", lambda: _tasks(recipe, model, envs))
    finally:
        envs.close()
    if device is None or lengths is None:
        return checks, None
    estimate = memory.estimate(recipe, model.config, lengths, device)
    checks += [_memory(recipe, model, lengths, device, estimate), _disk(recipe, run_dir, estimate)]
    return checks, estimate


def _device(recipe: Recipe) -> tuple[str, str]:
    import torch

    device = models.pick_device(recipe.model.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return ("cuda" if device.type == "cuda" else "cpu"), f"{device} {name}".strip()


def _wanted(recipe: Recipe) -> list[str]:
    """The extras without which a recipe's processes can't be started."""
    wanted = {"vllm": recipe.rollout.engine == "vllm", "deepspeed": recipe.trainer.backend == "deepspeed"}
    return [name for name, needed in {**wanted, "ray": recipe.cluster.address != "none"}.items() if needed]


def _processes(recipe: Recipe, wanted: Sequence[str]) -> tuple[int, str]:
    """The GPUs they need; none are asked for on a machine without any."""
    import torch

    if missing := [name for name in wanted if find_spec(name) is None]:
        raise UserError(f"not installed: {', '.join(missing)}: pip install 'k2rl[{','.join(missing)}]'")
    rollout, ranks = recipe.rollout, memory.rank_count(recipe)
    engines = rollout.engines if rollout.engine == "vllm" else 0
    apart = 0 if recipe.cluster.colocated or recipe.trainer.backend == "torch" else engines * rollout.tensor_parallel
    gpus, needed = torch.cuda.device_count(), ranks + apart
    if gpus and needed > gpus and recipe.cluster.address in ("none", "local"):
        raise UserError(f"{needed} GPUs needed, {gpus} here: lower trainer.ranks or rollout.engines")
    there = "in the cluster, which is not asked" if recipe.cluster.address not in ("none", "local") else f"{gpus} here"
    return needed, f"trainer ranks: {ranks}, engines: {engines}, GPUs: {there}"


def _trackers(recipe: Recipe) -> tuple[None, str]:
    check_installed(recipe.run.trackers)
    return None, ", ".join(recipe.run.trackers)


def _model(recipe: Recipe) -> tuple[Description, str]:
    found = models.describe(recipe.model)
    text = found.config.get_text_config()
    models.refuse_partial_attention(text)
    if recipe.model.lora is not None or recipe.trainer.gradient_checkpointing:
        memory.without_data(recipe, memory.with_layers(found.config, 1))  # raises where they don't fit the model
    adapters = f", LoRA of rank {recipe.model.lora.rank}" if recipe.model.lora else ""
    context = models.context_length(found.config)
    return found, f"{found.config.model_type}, {text.num_hidden_layers} layers, {context} tokens{adapters}"


def _environments(recipe: Recipe) -> tuple[EnvPool, str]:
    envs = EnvPool(recipe.envs, 0, recipe.run)
    try:
        setup.check_environments(recipe, envs)
    except BaseException:
        envs.close()
        raise
    left = "".join(f"; {name} is left out: {reason}" for name, reason in envs.left_out.items())
    return envs, ", ".join(envs.templates) + left


def _tasks(recipe: Recipe, model: Description, envs: EnvPool) -> tuple[Lengths, str]:
    """The longest prompt and response of tasks that fit the context."""
    context = models.context_length(model.config)
    needed = context_needed(recipe, envs, model.chat)
    longest, told = Lengths(1, 1), []
    for name, env in envs.templates.items():
        own_budget = partial(budget.limit, config=recipe.envs[name].budget, env_default=env.budget)
        tasks = pool(name, env, "train", recipe.seed, recipe.envs[name].pool)
        if env.open_ended:
            tasks = fitting(tasks, needed, context, COMPARISON).tasks
        own = memory.longest(model.chat, tasks, own_budget, context)
        if own is None:
            raise UserError(
                f"no task of env {name} fits the model's {context} tokens with its budget of {own_budget(tasks[0])}: "
                f"lower envs.{name}.budget.tokens"
            )
        told.append(f"{name}: prompts to {own.prompt} tokens, budgets to {own.response}")
        longest = Lengths(max(longest.prompt, own.prompt), max(longest.response, own.response))
    return longest, "; ".join(told)


def _memory(recipe: Recipe, model: Description, lengths: Lengths, device: str, estimate: Estimate) -> Check:
    free = memory.available(device)
    what = "" if estimate.where == "this process" else f" by {estimate.where}"
    found = f"about {estimate.peak / GIB:.1f} GiB needed{what}, {free / GIB:.1f} GiB free"
    if estimate.peak <= free * _TIGHT:
        return Check("memory", "ok", found)
    changes, best = memory.remedies(recipe, model.config, lengths, device, int(free * _TIGHT))
    fits = best.peak <= free * _TIGHT
    then = f"{' '.join(changes)} (then {best.peak / GIB:.1f} GiB)" if changes else ""
    fix = then if fits else " and ".join(x for x in (then, "a smaller model or a larger device") if x)
    return Check("memory", "broken" if estimate.peak > free else "optional", found, fix)


def _disk(recipe: Recipe, run_dir: Path, estimate: Estimate) -> Check:
    needed = checkpoint_bytes(recipe, estimate)
    try:
        runlog.enough_space(run_dir, needed)
    except UserError as error:
        return Check("disk", "broken", str(error).partition(": ")[0], "free some space, or lower run.checkpoints_kept")
    return Check("disk", "ok", f"{needed / 2**20:.0f} MiB for checkpoints and the model")


def checkpoint_bytes(recipe: Recipe, estimate: Estimate) -> int:
    """What a run's folder takes at most: the checkpoints kept, one more being written, and the model."""
    return estimate.checkpoint * (recipe.run.checkpoints_kept + 1) + estimate.model


def breakdown(estimate: Estimate) -> Iterator[dict[str, str]]:
    """The estimate as rows of a table."""
    for name, size in [*estimate.held.items(), *((f"while {k}", v) for k, v in estimate.phases.items())]:
        yield {"what": name, "GiB": f"{size / GIB:.2f}"}
    yield {"what": "kept by the allocator", "GiB": f"{estimate.slack / GIB:.2f}"}
    yield {"what": "the processes themselves", "GiB": f"{estimate.base / GIB:.2f}"}
    yield {"what": f"peak of {estimate.where}", "GiB": f"{estimate.peak / GIB:.2f}"}
