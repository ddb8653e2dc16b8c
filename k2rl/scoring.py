"""From verdicts to rewards to advantages, and the stop when too many rollouts have no verdict.

A grader's or the machine's failure is never a reward: such a rollout leaves its group, is counted and shown; a group
with fewer than two valid rollouts is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from k2rl import budget
from k2rl.budget import START, Moment
from k2rl.errors import RunError, UserError
from k2rl.losses import Objective
from k2rl.recipe import EnvSpec
from k2rl.types import FAILURES, End, Group, Rollout, ScoredGroup, Status, Verdict, mean

_REMEDIES = {
    Status.TIMEOUT: "Give that call a time limit in the environment (or raise run.stuck_s)",
    Status.VERIFIER_ERROR: "Mend the environment or its verifier (`k2rl env check` tries them out)",
    Status.INFRA_ERROR: "Look after what the environment runs on (`k2rl doctor` shows this machine)",
}


@dataclass(frozen=True)
class Scored:
    """The groups that train, what an iteration's metrics say about all of them, and all that have rewards."""

    groups: tuple[ScoredGroup, ...]
    metrics: dict[str, float]
    all: tuple[ScoredGroup, ...]


def score(
    groups: Sequence[Group],
    specs: Mapping[str, EnvSpec],
    objective: Objective,
    max_failure_rate: float,
    moment: Moment = START,
    weights: Mapping[str, float] | None = None,
) -> Scored:
    """Rewards and advantages of an iteration's groups at a moment of the run; those that do not train under
    `objective` are in the metrics alone.

    `weights` multiply the advantages of their environments, which are the open-ended ones, after whatever the objective
    makes of rewards (dividing by their deviation would undo it); a weight of 0 leaves an environment's groups out.

    Raises:
        RunError: too many rollouts have no verdict (see `check_failures`).
    """
    scored = []
    for group in groups:
        spec = specs[group.task.env]
        rewards = [reward(r, spec) for r in group.rollouts]
        valid = [(r, x) for r, x in zip(group.rollouts, rewards, strict=True) if x is not None]
        if len(valid) >= 2:
            rollouts = tuple(r for r, _ in valid)
            passed = [correct(r, spec) for r in rollouts]
            kept = budget.shape([x for _, x in valid], rollouts, passed, spec.budget, moment)
            weight = (weights or {}).get(group.task.env, 1.0)
            advantages = tuple(weight * a for a in objective.advantages(kept))
            scored.append(ScoredGroup(group.task, rollouts, tuple(kept), advantages, weight))
    check_failures([r for g in groups for r in g.rollouts], max_failure_rate)
    learning = [g for g in scored if g.weight and not (objective.drops_even and even(g))]
    metrics = _metrics(groups, scored, specs, moment, frozenset(weights or ())) | {"train/groups": float(len(learning))}
    return Scored(tuple(learning), metrics, tuple(scored))


def even(group: ScoredGroup) -> bool:
    """Whether all rewards of a group are equal: it has no better and no worse response to learn from."""
    return len(set(group.rewards)) == 1


def reward(rollout: Rollout, spec: EnvSpec) -> float | None:
    """A rollout's reward in [-1, 1]; None where it has no valid verdict.

    Raises:
        UserError: a plain gymnasium env without verdicts and without a `reward_range`, or a return outside it.
        RunError: the verdict waits for a judge, and there is none.
    """
    verdict = final_verdict(rollout, spec)
    if verdict.status is Status.PENDING:
        raise RunError(
            f"env {rollout.task.env} left the verdict on {rollout.task.id} pending, and no critic has ranked it: set "
            "critic.enabled=true, and open_ended in the environment's class"
        )
    return None if verdict.score is None else budget.reward(verdict.score, rollout, spec.budget)


def final_verdict(rollout: Rollout, spec: EnvSpec) -> Verdict:
    """The verdict that counts: malformed when cut short, else the env's last one, else its return mapped
    from `reward_range`. Raises as `reward` does."""
    if rollout.end is End.BUDGET:
        return Verdict.malformed(f"cut at its budget of {rollout.policy_tokens} tokens")
    if rollout.end is End.REPEAT:
        return Verdict.malformed(f"ended after {rollout.policy_tokens} tokens because it repeated itself")
    return rollout.verdict or _from_return(rollout, spec)


def correct(rollout: Rollout, spec: EnvSpec) -> bool:
    """Whether the rollout passed."""
    return final_verdict(rollout, spec).status is Status.CORRECT


def _from_return(rollout: Rollout, spec: EnvSpec) -> Verdict:
    name = rollout.task.env
    if spec.reward_range is None:
        raise UserError(
            f"env {name} gives no verdict: set info['verdict'], or declare envs.{name}.reward_range=[lowest,highest]"
        )
    low, high = spec.reward_range
    share = (rollout.env_return - low) / (high - low)
    if not -1e-9 <= share <= 1 + 1e-9:
        raise UserError(f"env {name} returned {rollout.env_return}, outside envs.{name}.reward_range=[{low},{high}]")
    # Step rewards add up with rounding: ten times 0.1 is a full return.
    return Verdict.of(1.0 if share > 1 - 1e-9 else max(share, 0.0))


def check_failures(rollouts: Sequence[Rollout], max_failure_rate: float) -> None:
    """Stop where a grader or a machine fails too often to train on what is left.

    Raises:
        RunError: more than `max_failure_rate` of all rollouts have no verdict, or of one environment's (one that fails
            always may be a small part of the mixture), unless those are all of one task, which may be to blame itself.
    """
    by_env: dict[str, list[Rollout]] = {}
    for rollout in rollouts:
        by_env.setdefault(rollout.task.env, []).append(rollout)
    for name, own in by_env.items():
        failed = _without_verdict(own)
        if len(failed) > max_failure_rate * len(own) and len({r.task.id for r in failed}) > 1:
            raise RunError(_failures(f"env {name}: ", own, max_failure_rate))
    if len(_without_verdict(rollouts)) > max_failure_rate * len(rollouts):
        raise RunError(_failures("", rollouts, max_failure_rate))


def _without_verdict(rollouts: Sequence[Rollout]) -> list[Rollout]:
    return [r for r in rollouts if r.verdict is not None and r.verdict.status in FAILURES]


def _failures(of: str, rollouts: Sequence[Rollout], allowed: float) -> str:
    """One line: how many, of which causes, the commonest one's example, and what to do about it."""
    failed = _without_verdict(rollouts)
    counts = Counter((r.task.env, r.verdict.status) for r in failed if r.verdict)
    (env, status), _ = counts.most_common(1)[0]
    example = next(r for r in failed if r.task.env == env and r.verdict and r.verdict.status is status)
    assert example.verdict is not None
    causes = ", ".join(f"{n} {cause}" + ("" if of else f" of env {name}") for (name, cause), n in counts.most_common())
    return (
        f"{of}{len(failed)} of {len(rollouts)} rollouts ({len(failed) / len(rollouts):.0%}) have no verdict: {causes}; "
        f"run.max_failure_rate={allowed:g} allows {allowed:.0%}. For example {status} of task {example.task.id}: "
        f"{example.verdict.detail}. {_REMEDIES[status]}, or raise run.max_failure_rate"
    )


def _metrics(
    groups: Sequence[Group],
    scored: Sequence[ScoredGroup],
    specs: Mapping[str, EnvSpec],
    moment: Moment,
    ranked: frozenset[str],
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for name in sorted({g.task.env for g in groups}):
        rollouts = [r for g in groups if g.task.env == name for r in g.rollouts]
        own = [g for g in scored if g.task.env == name]
        rewards = [x for g in own for x in g.rewards]
        if rewards:
            metrics[f"reward/{name}"] = mean(rewards)
        valid = [r for r in rollouts if r.verdict is None or r.verdict.scored]
        if name not in ranked:
            metrics[f"success/{name}"] = mean([float(correct(r, specs[name])) for r in valid])
        metrics[f"tokens/{name}"] = mean([float(r.policy_tokens) for r in rollouts])
        metrics |= {
            f"{key}/{name}": value for key, value in budget.metrics(rollouts, specs[name].budget, moment).items()
        }
        metrics[f"even_groups/{name}"] = mean([float(even(g)) for g in own]) if own else 0.0
        metrics[f"temperature/{name}"] = mean([s.temperature for r in rollouts for s in r.segments if s.logprobs])
    statuses = Counter(r.verdict.status for g in groups for r in g.rollouts if r.verdict is not None)
    for status in FAILURES:
        metrics[f"errors/{status}"] = float(statuses[status])
    metrics["errors/groups_dropped"] = float(len(groups) - len(scored))
    return metrics
