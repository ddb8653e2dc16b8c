"""Measure how hard a recipe's training tasks are for its model: `k2rl measure`.

Exactly the tasks that `k2rl train` would train on (same pools and seed), sampled as its first iteration would: with the
recipe's budgets and starting temperatures. What is done lies in `FILE.partial` until all of it is, so that an
interrupted measurement goes on; draws are keyed per task, so it comes out the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from k2rl.curriculum import fitting, pool
from k2rl.difficulty import Measured, tally
from k2rl.envpool import EnvPool
from k2rl.errors import UserError
from k2rl.eval_policy import tokens_needed
from k2rl.models import Policy, load_policy
from k2rl.progress import bar
from k2rl.recipe import Recipe
from k2rl.rollout import RolloutDriver, multi_turn
from k2rl.runlog import writing
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.scoring import check_failures
from k2rl.types import SCHEMA_VERSION, Task, mean

if TYPE_CHECKING:
    from rich.table import Table

_CHUNK = 64


def place(recipe: Recipe, out: Path | None) -> Path:
    """Where the report goes: `out`, else the one file that the recipe's `measured` keys name.

    Raises:
        UserError: neither says it, or it can't be written there.
    """
    named = {Path(spec.measured).expanduser() for spec in recipe.envs.values() if spec.measured is not None}
    if out is None and len(named) != 1:
        found = f"names {len(named)} files" if named else "names none"
        raise UserError(f"where to? The recipe's envs.X.measured {found}: give --out FILE")
    chosen = out or named.pop()
    if chosen.is_dir() or not chosen.parent.is_dir():
        raise UserError(f"{chosen}: give a file in a folder that exists")
    return chosen


def measure(recipe: Recipe, out: Path, *, samples: int = 8, force: bool = False, quiet: bool = False) -> dict[str, Any]:
    """Sample every training task `samples` times; write the report to `out` and return it.

    Raises:
        UserError: `out` exists (and not `force`), a partial measurement is of something else, or anything is wrong
            with the model or the environments.
        RunError: too many rollouts have no verdict, or an environment's calls get stuck.
    """
    if out.exists() and not force:
        raise UserError(f"{out} exists: choose another --out, or add --force to measure again")
    envs = EnvPool(recipe.envs, recipe.rollout.workers, recipe.run)
    try:
        policy = load_policy(recipe.model, recipe.seed)
        tasks = _training_tasks(recipe, envs, policy)
        return _measure(recipe, policy, envs, tasks, out, samples, quiet)
    finally:
        envs.close()


def _training_tasks(recipe: Recipe, envs: EnvPool, policy: Policy) -> list[Task]:
    if multi_turn(envs.templates):
        policy.chat.check_turns()
    found: list[Task] = []
    if envs.templates and all(env.open_ended for env in envs.templates.values()):
        raise UserError(f"nothing to measure: {', '.join(envs.templates)} is open-ended, where no response is right")
    for name, env in envs.templates.items():
        if env.open_ended:
            continue  # Nothing passes there.
        with envs.watchdog.watching(f"tasks() of env {name}"):
            tasks = pool(name, env, "train", recipe.seed, recipe.envs[name].pool)
        found += fitting(tasks, tokens_needed(policy.chat, envs), policy.context).tasks
    return found


def _measure(
    recipe: Recipe, policy: Policy, envs: EnvPool, tasks: list[Task], out: Path, samples: int, quiet: bool
) -> dict[str, Any]:
    heat = {name: (recipe.envs[name].temperature or recipe.temperature).at(0.0) for name in envs.templates}
    settings = {
        "model": recipe.model.path,
        "weights": _fingerprint(policy),
        "split": "train",
        "samples": samples,
        "temperature": heat,
        "budgets": {name: recipe.envs[name].budget.tokens for name in envs.templates},
        "max_repeats": {name: recipe.envs[name].budget.max_repeats for name in envs.templates},
        "seed": recipe.seed,
    }
    partial = out.with_name(out.name + ".partial")
    done = _partial(partial, settings)
    todo = [t for t in tasks if t.id not in done]
    sampler = TorchSampler(policy.model, policy.chat.pad_id, recipe.rollout.slots)
    driver = RolloutDriver(
        envs,
        sampler,
        policy.chat,
        seed=recipe.seed,
        group_size=samples,
        context=policy.context,
        purpose="measure",
    )
    before, total = len(tasks) - len(todo), len(tasks) * samples
    with bar("measuring", quiet) as show:
        for at in range(0, len(todo), _CHUNK):
            first = (before + at) * samples
            groups = driver.collect(
                todo[at : at + _CHUNK],
                iteration=0,
                temperature=lambda name: heat[name],
                on_progress=lambda d, _, first=first: show(first + d, total),  # type: ignore[misc]
            )
            check_failures([r for g in groups for r in g.rollouts], recipe.run.max_failure_rate)
            done |= {g.task.id: tally(g, recipe.envs[g.task.env]) for g in groups}
            _write(partial, {"schema_version": SCHEMA_VERSION, "settings": settings, "done": _json(done)})
    sampler.close()
    names = [name for name, env in envs.templates.items() if not env.open_ended]
    by_env = {name: {t.id: m for t in tasks if t.env == name and (m := done[t.id])} for name in names}
    report = {
        "schema_version": SCHEMA_VERSION,
        **settings,
        "envs": {
            name: {"id": recipe.envs[name].id, "args": recipe.envs[name].args, **_report(found)}
            for name, found in by_env.items()
        },
    }
    _write(out, report)
    partial.unlink(missing_ok=True)
    return report


def _report(tasks: Mapping[str, Measured]) -> dict[str, Any]:
    """`never`, `always`: the shares of tasks that no sample, every sample passed, which teach a group nothing;
    `between`: the number of the others."""
    rates = [m.rate for m in tasks.values()]
    return {
        "n": len(tasks),
        "pass@1": mean(rates) if rates else None,
        "never": mean([float(rate == 0) for rate in rates]) if rates else None,
        "always": mean([float(rate == 1) for rate in rates]) if rates else None,
        "between": sum(0 < rate < 1 for rate in rates),
        "tasks": _json(tasks),
    }


def _json(done: Mapping[str, Measured | None]) -> dict[str, Any]:
    return {task: measured and measured.to_json() for task, measured in done.items()}


def _fingerprint(policy: Policy) -> str:
    """Which weights these are, from a sample of every tensor: another training step changes all of them."""
    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in sorted(policy.model.named_parameters()):
        head = parameter.detach().flatten()[:64].float().cpu()
        digest.update(name.encode() + head.numpy().tobytes())
    return digest.hexdigest()


def _partial(path: Path, settings: Mapping[str, Any]) -> dict[str, Measured | None]:
    """What an interrupted measurement got done."""
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
        same = found["settings"] == settings and found["schema_version"] == SCHEMA_VERSION
        done = {
            task: m and Measured(m["n"], m["correct"], tuple(m["correct_tokens"])) for task, m in found["done"].items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: delete it to measure from the start") from None
    if not same:
        raise UserError(
            f"{path} was begun with another model, seed, budget, temperature or number of samples: delete it to "
            "measure from the start, or choose another --out"
        )
    return done


def _write(path: Path, data: Mapping[str, Any]) -> None:
    draft = path.with_name(f".draft-{path.name}")
    with writing(path):
        draft.write_text(json.dumps(data) + "\n", encoding="utf-8")
        os.replace(draft, path)


def table(report: Mapping[str, Any]) -> Table:
    """A report for the terminal."""
    from rich.table import Table

    grid = Table(title=f"{report['model']}, training tasks, {report['samples']} samples each")
    for column in ("env", "tasks", "pass rate", "never right", "always right", "in between"):
        grid.add_column(column, justify="left" if column == "env" else "right")
    for name, r in report["envs"].items():
        if not r["n"]:
            grid.add_row(name, "0", *["-"] * 4)
            continue
        shares = [f"{100 * r[key]:.1f} %" for key in ("pass@1", "never", "always")]
        grid.add_row(name, str(r["n"]), *shares, str(r["between"]))
    return grid
