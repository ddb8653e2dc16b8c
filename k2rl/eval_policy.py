"""How good a policy is on an environment's held-out tasks: pass@k with intervals, sampled and greedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from k2rl import budget, rng
from k2rl.chat import Chat
from k2rl.curriculum import fitting, pool
from k2rl.difficulty import tasks_of
from k2rl.env import Env
from k2rl.envpool import EnvPool
from k2rl.errors import UserError
from k2rl.intervals import wilson
from k2rl.models import Policy, load_policy
from k2rl.progress import bar
from k2rl.protocols import Sampler
from k2rl.recipe import EnvSpec, ModelConfig, RunConfig
from k2rl.rollout import RolloutDriver, multi_turn
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.scoring import correct
from k2rl.types import SCHEMA_VERSION, Group, Split, Task, mean

if TYPE_CHECKING:
    from rich.table import Table

_CHUNK = 256


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k draws without replacement from n samples, c of them correct, is correct
    (Chen et al., arXiv 2107.03374, Eq. 1)."""
    return 1.0 if n - c < k else 1.0 - math.comb(n - c, k) / math.comb(n, k)


def bootstrap(values: Sequence[float], seed: int = 0, draws: int = 2000) -> list[float]:
    """The 95 % percentile interval of the mean, resampling tasks; Wilson's where all tasks came out alike."""
    data = np.asarray(values, dtype=np.float64)
    if data.min() == data.max() and data[0] in (0.0, 1.0):
        return wilson(float(data[0]), len(data))
    draw = rng.generator("bootstrap", seed, len(data))
    means = data[draw.integers(0, len(data), size=(draws, len(data)))].mean(axis=1)
    return [float(x) for x in np.quantile(means, [0.025, 0.975])]


def _show(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where nothing had a verdict."""
    return "-" if value is None else f"{value:.{digits}f}"


def _interval(report: Mapping[str, Any]) -> str:
    low, high = report["ci95"]["pass@1"]
    return f"[{_show(low)}, {_show(high)}]"


def measure(
    sampler: Sampler,
    policy: Policy,
    envs: EnvPool,
    tasks: Mapping[str, Sequence[Task]],
    *,
    samples: int,
    k: int,
    temperature: float,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, Any]]:
    """Per env: `pass@k` (and `pass@1`) with `ci95`, `n` tasks, mean policy `tokens`, `budget_hit` share,
    `no_verdict`, the rollouts that a failing verifier left unscored (they count neither way), and each task's own
    results as `tasks` (see `difficulty.py`)."""
    driver = RolloutDriver(
        envs, sampler, policy.chat, seed=seed, group_size=samples, context=policy.context, purpose="eval"
    )
    flat = [t for name in tasks for t in tasks[name]]
    groups: list[Group] = []
    for at in range(0, len(flat), _CHUNK):
        done = at * samples
        groups += driver.collect(
            flat[at : at + _CHUNK],
            iteration=0,
            temperature=lambda name: temperature,
            on_progress=lambda d, _, done=done: on_progress(done + d, len(flat) * samples),  # type: ignore[misc]
        )
    return {name: _report([g for g in groups if g.task.env == name], envs.specs[name], k) for name in tasks}


def sampled_and_greedy(
    sampler: Sampler,
    policy: Policy,
    envs: EnvPool,
    tasks: Mapping[str, Sequence[Task]],
    *,
    samples: int = 1,
    k: int = 1,
    temperature: float = 1.0,
    seed: int,
    title: str = "evaluating",
    quiet: bool = False,
) -> dict[str, dict[str, Any]]:
    """What `measure` finds per env, with the pass@1 of greedy decoding beside it as `greedy`."""

    def run(label: str, samples: int, k: int, temperature: float) -> dict[str, dict[str, Any]]:
        with bar(f"{title}, {label}", quiet) as on_progress:
            return measure(
                sampler,
                policy,
                envs,
                tasks,
                samples=samples,
                k=k,
                temperature=temperature,
                seed=seed,
                on_progress=on_progress,
            )

    results = run("sampled" if temperature else "greedy", samples, k, temperature)
    greedy = run("greedy", 1, 1, 0.0) if temperature else results
    return {name: {**r, "greedy": greedy[name]["pass@1"]} for name, r in results.items()}


def evaluate(
    model: ModelConfig,
    envs: Mapping[str, EnvSpec],
    *,
    n: int = 200,
    k: int = 1,
    samples: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    split: Split = "test",
    quiet: bool = False,
    slots: int = 256,
    run: RunConfig | None = None,
) -> dict[str, Any]:
    """Load a model and measure it, sampled and greedy: the report behind `k2rl eval`.

    Of `run` (None: the defaults) only what concerns stuck environments counts.

    Raises:
        UserError: k larger than `samples`, or anything wrong with the model or the environments.
        RunError: an environment's calls get stuck.
    """
    samples = max(k, 1 if temperature == 0 else 4) if samples is None else samples
    check_sampling(n, k, samples, temperature)
    pool_of_envs = EnvPool(envs, workers=2, run=run)
    try:
        check_verdicts(pool_of_envs.templates)
        policy = load_policy(model)
        sampler = TorchSampler(policy.model, policy.chat.pad_id, slots)
        tasks = held_out(policy, pool_of_envs, seed, n, split)
        results = sampled_and_greedy(
            sampler, policy, pool_of_envs, tasks, samples=samples, k=k, temperature=temperature, seed=seed, quiet=quiet
        )
    finally:
        pool_of_envs.close()
    return {
        "schema_version": SCHEMA_VERSION,
        "model": model.path,
        "split": split,
        "k": k,
        "samples": samples,
        "temperature": temperature,
        "seed": seed,
        "envs": results,
    }


def check_verdicts(envs: Mapping[str, Env]) -> None:
    """Refuse what has no right and wrong. Raises `UserError`."""
    for name, env in envs.items():
        if env.open_ended:
            raise UserError(
                f"env {name} is open-ended: its responses are compared with each other, none is right or wrong, so "
                "there is no pass rate; leave it out"
            )


def check_sampling(n: int, k: int, samples: int, temperature: float) -> None:
    """Raise `UserError` for counts that make no sense together."""
    if n < 1 or k < 1:
        raise UserError(f"n is {n} and k is {k}: both must be 1 or more")
    if k > samples:
        raise UserError(f"pass@{k} needs at least {k} samples per task, got {samples}")
    if temperature < 0:
        raise UserError(f"temperature is {temperature}: it must be 0 (greedy) or more")
    if temperature == 0 and samples > 1:
        raise UserError("greedy decoding gives the same answer every time: use 1 sample")


def held_out(policy: Policy, envs: EnvPool, seed: int, count: int, split: Split = "test") -> dict[str, list[Task]]:
    """The first `count` tasks of each env's split that fit the model's context."""
    found = {}
    for name, env in envs.templates.items():
        if multi_turn({name: env}):
            policy.chat.check_turns()
        with envs.watchdog.watching(f"tasks() of env {name}"):
            tasks = pool(name, env, split, seed, count)
        found[name] = fitting(tasks, tokens_needed(policy.chat, envs), policy.context).tasks
    return found


def tokens_needed(chat: Chat, envs: EnvPool) -> Callable[[Task], int]:
    """Prompt plus budget of a task, in tokens."""

    def needed(task: Task) -> int:
        limit = budget.limit(task, envs.specs[task.env].budget, envs.templates[task.env].budget)
        return len(chat.prompt(task.messages)) + limit

    return needed


def table(report: Mapping[str, Any]) -> Table:
    """A report of `evaluate` for the terminal."""
    from rich.table import Table

    k = report["k"]
    grid = Table(title=f"{report['model']}, {report['split']} split, T = {report['temperature']}")
    for column in (
        "env",
        "tasks",
        "pass@1",
        *([f"pass@{k}"] if k > 1 else []),
        "95 % interval",
        "greedy",
        "tokens",
        "no verdict",
    ):
        grid.add_column(column, justify="left" if column == "env" else "right")
    for name, r in report["envs"].items():
        values = [name, str(r["n"]), _show(r["pass@1"]), *([_show(r[f"pass@{k}"])] if k > 1 else [])]
        values += [_interval(r), _show(r["greedy"]), f"{r['tokens']:.1f}", str(r["no_verdict"])]
        grid.add_row(*values)
    return grid


def before_after(summary: Mapping[str, Any]) -> Table:
    """A run's summary for the terminal: held-out tasks before and after."""
    from rich.table import Table

    took = f"{summary['iterations']} iterations ({summary['wall_s']:.0f} s)"
    grid = Table(title=f"held-out tasks before and after {took}")
    columns = ("env", "tasks", "pass@1 before", "after", "gain", "greedy before", "after", "tokens before", "after")
    for column in columns:
        grid.add_column(column, justify="left" if column == "env" else "right")
    for name, after in summary["eval_after"].items():
        before = summary["eval_before"][name]
        cells = [f"{_show(r['pass@1'])} {_interval(r)}" for r in (before, after)]
        known = before["pass@1"] is not None and after["pass@1"] is not None
        gain = f"{100 * (after['pass@1'] - before['pass@1']):+.1f} points" if known else "-"
        greedy = [_show(r["greedy"]) for r in (before, after)]
        tokens = [f"{r['tokens']:.1f}" for r in (before, after)]
        grid.add_row(name, str(after["n"]), *cells, gain, *greedy, *tokens)
    return grid


def _report(groups: Sequence[Group], spec: EnvSpec, k: int) -> dict[str, Any]:
    counts = []
    unscored = 0
    for group in groups:
        valid = [r for r in group.rollouts if r.verdict is None or r.verdict.scored]
        unscored += len(group.rollouts) - len(valid)
        if len(valid) >= k:
            counts.append((len(valid), sum(correct(r, spec) for r in valid)))
    rollouts = [r for g in groups for r in g.rollouts]
    report: dict[str, Any] = {"n": len(counts), "ci95": {}}
    for size in sorted({1, k}):
        values = [pass_at_k(n, c, size) for n, c in counts]
        report[f"pass@{size}"] = mean(values) if values else None
        report["ci95"][f"pass@{size}"] = bootstrap(values) if values else [None, None]
    report["tokens"] = mean([float(r.policy_tokens) for r in rollouts])
    report["budget_hit"] = mean([float(r.end == "budget") for r in rollouts])
    report["no_verdict"] = unscored
    report["tasks"] = tasks_of(groups, spec)
    return report
