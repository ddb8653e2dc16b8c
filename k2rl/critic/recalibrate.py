"""What keeps the judge true to the policy as it moves: pairs of its own answers, labelled by the verifiers.

Kimi K2 (arXiv 2507.20534 section 3.2.2) says that verifiable on-policy rollouts keep updating the critic, and not how.
Our choice: one correct and one wrong answer to the same prompt, both ended by the policy itself and both parseable
(else "shorter wins" would look like judgement), the environments in turn, each pair in both orders. A window of
iterations is drawn from, so that few pairs an iteration are enough.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from k2rl import rng
from k2rl.critic.records import Pair
from k2rl.types import End, Group, Rollout, Status

Key = str | int


def verified_pairs(
    groups: Sequence[Group], criteria: Mapping[str, tuple[str, ...]], most: int, *key: Key
) -> list[Pair]:
    """At most `most` pairs of an iteration's verified groups, the environments and tasks in turn.

    A response stands in one pair only, and each text once, so that one lucky or one frequent answer does not decide.
    `criteria` are those of each environment; the draws are keyed by `key`.
    """
    by_env: dict[str, list[list[Pair]]] = {}
    for group in groups:
        found = _of_group(group, criteria.get(group.task.env, ()), *key)
        if found:
            by_env.setdefault(group.task.env, []).append(found)
    # Of each environment the first pair of every task, then the second ones, …
    queues = [[p for layer in zip_longest(*tasks) for p in layer if p] for _, tasks in sorted(by_env.items())]
    return [p for layer in zip_longest(*queues) for p in layer if p][:most]


def _of_group(group: Group, criteria: tuple[str, ...], *key: Key) -> list[Pair]:
    correct, wrong = (_texts(group.rollouts, status) for status in (Status.CORRECT, Status.WRONG))
    draw = rng.generator("verified", group.task.id, *key)
    first, second = draw.permutation(len(correct)), draw.permutation(len(wrong))
    return [
        Pair(group.task.env, group.task.id, "verified", group.task.messages, criteria, correct[int(i)], wrong[int(j)])
        for i, j in zip(first, second, strict=False)
    ]


def _texts(rollouts: Sequence[Rollout], status: Status) -> list[str]:
    """The different texts of a verdict that the policy ended by itself."""
    told = (r for r in rollouts if r.end is End.STOP and r.verdict is not None and r.verdict.status is status)
    return list(dict.fromkeys("\n\n".join(r.text) for r in told))


class Window:
    """The pairs of the last iterations, drawn from without regard to which of them they are of."""

    def __init__(self, iterations: int) -> None:
        self._kept: deque[tuple[int, list[Pair]]] = deque(maxlen=iterations)

    def add(self, iteration: int, pairs: Sequence[Pair]) -> None:
        self._kept.append((iteration, list(pairs)))

    def draw(self, count: int, *key: Key) -> list[Pair]:
        """`count` pairs (fewer where there are fewer), balanced over environments as far as they go round."""
        by_env: dict[str, list[Pair]] = {}
        for _, pairs in self._kept:
            for pair in pairs:
                by_env.setdefault(pair.env, []).append(pair)
        draw = rng.generator("window", *key)
        mixed = [[own[int(i)] for i in draw.permutation(len(own))] for _, own in sorted(by_env.items())]
        return [p for layer in zip_longest(*mixed) for p in layer if p][:count]

    @property
    def counts(self) -> Counter[str]:
        """How many pairs there are of each environment."""
        return Counter(pair.env for _, pairs in self._kept for pair in pairs)

    def state(self) -> list[dict[str, Any]]:
        return [{"iteration": n, "pairs": [p.to_json() for p in pairs]} for n, pairs in self._kept]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        self._kept.clear()
        for entry in state:
            self.add(entry["iteration"], [Pair.from_json(p) for p in entry["pairs"]])
