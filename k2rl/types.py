"""The records that flow through an iteration. Everything else is functions between them.

Task -> (Segment, …) -> Rollout -> Group -> ScoredGroup -> Batch (see `batch.py`).

Shape suffixes used for tensors everywhere: B rollouts of a (micro-)batch, L token positions,
V vocabulary, G groups, K rollouts of one group, S sampler rows, P prompts, N labels.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal

SCHEMA_VERSION = 1

Message = Mapping[str, Any]
"""A chat message: `{"role": "system" | "user" | "assistant" | "tool", "content": str, …}`."""

Split = Literal["train", "test"]


def content_hash(*parts: object) -> str:
    """A stable 16-digit hex hash of JSON-able values, equal across processes and machines."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@dataclass(frozen=True)
class Task:
    """One problem of an environment.

    `reference` is JSON: whatever the verifier needs besides `answer`. `budget` (tokens) overrides the
    environment's default and is overridden by the recipe. `env` is the recipe's name for the environment
    and is filled in by the framework.
    """

    prompt: str | tuple[Message, ...]
    answer: str | None = None
    reference: Mapping[str, Any] = field(default_factory=dict)
    budget: int | None = None
    rubrics: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    env: str = ""

    @cached_property
    def id(self) -> str:
        """Hash of environment name, prompt and reference."""
        prompt = self.prompt if isinstance(self.prompt, str) else [dict(m) for m in self.prompt]
        return content_hash(self.env, prompt, dict(self.reference))

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt as chat messages; a plain string is one user message."""
        if isinstance(self.prompt, str):
            return ({"role": "user", "content": self.prompt},)
        return tuple(self.prompt)

    def to_json(self) -> dict[str, Any]:
        prompt = self.prompt if isinstance(self.prompt, str) else [dict(m) for m in self.prompt]
        return {
            "env": self.env,
            "prompt": prompt,
            "answer": self.answer,
            "reference": dict(self.reference),
            "budget": self.budget,
            "rubrics": list(self.rubrics),
            "tags": list(self.tags),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Task:
        prompt = data["prompt"]
        return cls(
            prompt=prompt if isinstance(prompt, str) else tuple(prompt),
            answer=data["answer"],
            reference=data["reference"],
            budget=data["budget"],
            rubrics=tuple(data["rubrics"]),
            tags=tuple(data["tags"]),
            env=data["env"],
        )


class Status(StrEnum):
    """What a verifier found. The first three are the answer's doing and carry a score.

    The next three are the grader's or the machine's doing and never do: such a rollout leaves its group.
    `pending` waits for another judge (the tournament of an open-ended group), whose finding is `ranked`: a score that
    says how the response compares with the others of its group, not whether it is right.
    """

    CORRECT = "correct"
    WRONG = "wrong"
    MALFORMED = "malformed"
    TIMEOUT = "timeout"
    VERIFIER_ERROR = "verifier_error"
    INFRA_ERROR = "infra_error"
    PENDING = "pending"
    RANKED = "ranked"


SCORED = frozenset({Status.CORRECT, Status.WRONG, Status.MALFORMED, Status.RANKED})
FAILURES = (Status.TIMEOUT, Status.VERIFIER_ERROR, Status.INFRA_ERROR)


@dataclass(frozen=True)
class Verdict:
    """A verifier's finding: status, score in [0, 1] (None unless the status carries one), and a
    detail a person can read.

    Raises:
        ValueError: the score is missing where the status needs one, present where it must not be,
            or outside [0, 1].
    """

    status: Status
    score: float | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))
        if self.score is not None:
            object.__setattr__(self, "score", float(self.score))
        if self.status in SCORED:
            if self.score is None or not (math.isfinite(self.score) and 0.0 <= self.score <= 1.0):
                raise ValueError(f"a verdict {self.status!r} needs a score in [0, 1], got {self.score!r}")
        elif self.score is not None:
            raise ValueError(f"a verdict {self.status!r} carries no score, got {self.score!r}")

    def to_json(self) -> dict[str, Any]:
        return {"status": self.status, "score": self.score, "detail": self.detail}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        return cls(Status(data["status"]), data["score"], data["detail"])

    @property
    def scored(self) -> bool:
        return self.score is not None

    @classmethod
    def of(cls, passed: bool | float, detail: str = "") -> Verdict:
        """`True`/`False`, or a partial score in [0, 1]; only an exact 1.0 counts as correct."""
        score = float(passed)
        return cls(Status.CORRECT if score == 1.0 else Status.WRONG, score, detail)

    @classmethod
    def malformed(cls, detail: str) -> Verdict:
        """The response can't be read as an answer at all: score 0, and the answer's own doing."""
        return cls(Status.MALFORMED, 0.0, detail)

    @classmethod
    def failure(cls, status: Status, detail: str) -> Verdict:
        """A time-out or error of the grader or the machine: no score, never a reward."""
        return cls(status, None, detail)

    @classmethod
    def pending(cls, detail: str = "") -> Verdict:
        """To be decided by comparison inside the group."""
        return cls(Status.PENDING, None, detail)

    @classmethod
    def ranked(cls, score: float, detail: str = "") -> Verdict:
        """Decided by comparison inside the group: a score in [0, 1], 0.5 being as good as the others."""
        return cls(Status.RANKED, score, detail)


class End(StrEnum):
    """How a rollout ended: the policy stopped, its token budget cut it or that it repeated itself, the env's limit did,
    or an error."""

    STOP = "stop"
    BUDGET = "budget"
    REPEAT = "repeat"
    ENV_LIMIT = "env_limit"
    ERROR = "error"


@dataclass(frozen=True)
class Segment:
    """Consecutive token ids from one source.

    Policy segments carry, per token, the engine's log-prob at `temperature`, and the version of the
    weights that produced them. Env segments (tool results, user turns) carry no loss and no budget.
    """

    source: Literal["policy", "env"]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    temperature: float = 1.0
    version: int = 0

    def __post_init__(self) -> None:
        expected = len(self.ids) if self.source == "policy" else 0
        assert len(self.logprobs) == expected, f"{self.source} segment: {len(self.logprobs)} log-probs"

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "ids": self.ids,
            "logprobs": self.logprobs,
            "temperature": self.temperature,
            "version": self.version,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Segment:
        return cls(data["source"], tuple(data["ids"]), tuple(data["logprobs"]), data["temperature"], data["version"])


@dataclass(frozen=True)
class Rollout:
    """One finished trajectory of a task. `k` is its place in the group; `text` what the policy said,
    turn by turn; `env_return` the sum of step rewards, read only where the env gives no verdict."""

    task: Task
    k: int
    prompt_ids: tuple[int, ...]
    segments: tuple[Segment, ...]
    end: End
    verdicts: tuple[Verdict, ...] = ()
    text: tuple[str, ...] = ()
    env_return: float = 0.0

    @property
    def verdict(self) -> Verdict | None:
        """The last verdict, which decides."""
        return self.verdicts[-1] if self.verdicts else None

    @property
    def cut(self) -> bool:
        """Whether it was ended in the middle of what it said, which is scored as malformed."""
        return self.end in (End.BUDGET, End.REPEAT)

    @property
    def policy_tokens(self) -> int:
        """What counts against the budget: all model output, over all turns."""
        return sum(len(s.ids) for s in self.segments if s.source == "policy")

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task.to_json(),
            "task_id": self.task.id,
            "k": self.k,
            "prompt_ids": self.prompt_ids,
            "segments": [s.to_json() for s in self.segments],
            "end": self.end,
            "verdicts": [v.to_json() for v in self.verdicts],
            "text": self.text,
            "env_return": self.env_return,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Rollout:
        return cls(
            task=Task.from_json(data["task"]),
            k=data["k"],
            prompt_ids=tuple(data["prompt_ids"]),
            segments=tuple(Segment.from_json(s) for s in data["segments"]),
            end=End(data["end"]),
            verdicts=tuple(Verdict.from_json(v) for v in data["verdicts"]),
            text=tuple(data["text"]),
            env_return=data["env_return"],
        )


@dataclass(frozen=True)
class Group:
    """The K rollouts of one task."""

    task: Task
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class ScoredGroup:
    """A group with its rewards and advantages; rollouts without a score have left it.

    `rewards[i]` and `advantages[i]` belong to `rollouts[i]`. `weight` is the trust weight that already
    multiplied the advantages (1.0 for verifiable groups).
    """

    task: Task
    rollouts: tuple[Rollout, ...]
    rewards: tuple[float, ...]
    advantages: tuple[float, ...]
    weight: float = 1.0


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean; NaN for an empty sequence."""
    return math.fsum(values) / len(values) if values else math.nan
