"""What a run keeps of an iteration besides its metrics, as rows of JSON: enough to look at it, and to score it again.

`rollouts`: every rollout, with the reward and advantage it was given (null where it had none: no valid verdict, or
alone in its group) and the budget it had. `critiques`: the tournaments. `judged`: what the judge said of pairs whose
better response was known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from k2rl.critic.critic import Ranked
from k2rl.critic.records import JudgedPair, Judgement
from k2rl.scoring import Scored
from k2rl.types import Group, Task

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""By kind, each a folder of the run directory."""


def rows(ranked: Ranked, scored: Scored, limit: Callable[[Task], int]) -> Rows:
    """Of one iteration. `limit` is the budget of a task, in tokens."""
    return {
        "rollouts": rollouts(ranked.groups, scored, limit),
        "critiques": [critique.to_json() for critique in ranked.critiques],
        "judged": [_judged(pair) for pair in ranked.measured],
    }


def rollouts(groups: Sequence[Group], scored: Scored, limit: Callable[[Task], int]) -> list[dict[str, Any]]:
    given = {
        id(rollout): {"reward": reward, "advantage": advantage}
        for group in scored.all
        for rollout, reward, advantage in zip(group.rollouts, group.rewards, group.advantages, strict=True)
    }
    none = {"reward": None, "advantage": None}
    return [
        {**rollout.to_json(), **given.get(id(rollout), none), "budget": limit(group.task)}
        for group in groups
        for rollout in group.rollouts
    ]


def _judged(judged: JudgedPair) -> dict[str, Any]:
    pair = judged.pair
    return {
        "env": pair.env,
        "source": pair.source,
        "kind": pair.kind,
        "task_id": pair.task,
        "lengths": [len(pair.better), len(pair.worse)],
        "judgement": _probabilities(judged.judgement),
        "reference": judged.reference and _probabilities(judged.reference),
    }


def _probabilities(judgement: Judgement) -> list[float]:
    """P(the better one is better), with it shown first and last."""
    return [judgement.a_first, judgement.b_first]
