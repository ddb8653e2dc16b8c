"""What flows through the critic: pairs of responses, and what a judge made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from k2rl.types import Message


@dataclass(frozen=True)
class Judgement:
    """A judge's view of two responses A and B: the probability that A is better, as told with A shown first and with
    B shown first.

    Raises:
        ValueError: a probability outside [0, 1].
    """

    a_first: float
    b_first: float

    def __post_init__(self) -> None:
        if not (0.0 <= self.a_first <= 1.0 and 0.0 <= self.b_first <= 1.0):
            raise ValueError(f"probabilities lie in [0, 1], got {self.a_first!r} and {self.b_first!r}")

    @property
    def p(self) -> float:
        """P(A is better): the mean over both orders."""
        return (self.a_first + self.b_first) / 2

    @property
    def prefers_a(self) -> float:
        """1 where A is preferred over both orders, 0.5 at a tie, else 0. Without the last digits, for (0.4 + 0.6) / 2
        is not always a half."""
        return 0.5 + 0.5 * float(np.sign(round(self.a_first + self.b_first - 1, 12)))

    @property
    def agrees(self) -> bool:
        """Whether both orders pick the same response; a tie in exactly one of them disagrees."""
        return (self.a_first > 0.5) == (self.b_first > 0.5) and (self.a_first < 0.5) == (self.b_first < 0.5)


def source_of(kind: str, apart: bool) -> str:
    """Who knows which of a pair is better."""
    return "verified" if kind == "verified" else "apart" if apart else "degradation"


@dataclass(frozen=True)
class Pair:
    """Two responses to one prompt of which it is known which is better: by a verifier (`kind` is `verified`), or
    because one is a corruption (`kind` is the corruption's name).

    Where they are `apart`, it is a corruption of another response than the better one, so that they don't differ in
    just one place. `env` and `task` name where the pair is from; pairs of one task are not independent. `criteria` are
    what the judge is told to judge by, in words.
    """

    env: str
    task: str
    kind: str
    messages: tuple[Message, ...]
    criteria: tuple[str, ...]
    better: str
    worse: str
    apart: bool = False

    @property
    def source(self) -> str:
        """Who knows which is better."""
        return source_of(self.kind, self.apart)

    def to_json(self) -> dict[str, Any]:
        return {
            "env": self.env,
            "task": self.task,
            "kind": self.kind,
            "messages": [dict(m) for m in self.messages],
            "criteria": self.criteria,
            "better": self.better,
            "worse": self.worse,
            "apart": self.apart,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Pair:
        return cls(
            env=data["env"],
            task=data["task"],
            kind=data["kind"],
            messages=tuple(data["messages"]),
            criteria=tuple(data["criteria"]),
            better=data["better"],
            worse=data["worse"],
            apart=data["apart"],
        )


@dataclass(frozen=True)
class JudgedPair:
    """A pair and the judgement on it, with the better response as A; `reference` is that of the judge as it was at the
    run's start."""

    pair: Pair
    judgement: Judgement
    reference: Judgement | None = None
