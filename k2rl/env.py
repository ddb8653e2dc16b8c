"""The contract of an environment: a `gymnasium.Env` over text, with tasks, a gold answer and verdicts.

A single-turn environment is two methods::

    class ReverseText(SingleTurnEnv):
        budget = 64

        def tasks(self, split, seed):
            for word in words(split, seed):
                yield Task(prompt=f"Reverse: {word}", answer=word[::-1])

        def verify(self, task, response):
            return Verdict.of(response.strip() == task.answer)

Life cycle. A worker thread makes one instance and calls `setup()` on it once: load heavy things there. Each of its
rollouts gets a shallow copy of that instance (`spawn()`), so what `setup()` made is shared among them, and touched by
that thread alone; what `reset()` sets is the rollout's own. The worker calls `close()` when it ends.

Env authors see text and messages, never token ids; tokenisation, budgets and loss masks are the framework's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

import gymnasium
import numpy as np

from k2rl.types import Split, Task, Verdict


class UnicodeText(gymnasium.Space[str]):
    """Any Python string. (`gymnasium.spaces.Text` is alphanumeric by default and fails on prompts.)"""

    def __init__(self, max_sample_length: int = 32, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(dtype=np.str_, seed=seed)
        self.max_sample_length = max_sample_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Random printable text of at most `max_sample_length` characters."""
        length = int(self.np_random.integers(0, self.max_sample_length + 1))
        return "".join(chr(int(c)) for c in self.np_random.integers(32, 0x250, size=length))

    def contains(self, x: Any) -> bool:
        return isinstance(x, str)

    @property
    def is_np_flattenable(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "UnicodeText()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText)

    def __hash__(self) -> int:
        return hash(UnicodeText)


class Env(gymnasium.Env[str, str]):
    """A text environment with tasks and verdicts.

    Subclasses define `tasks`, `reset_task` and `step`; single-turn ones extend `SingleTurnEnv` instead.
    `step` returns `(observation, reward, terminated, truncated, info)`; `info["verdict"]` is the authority
    and `reward` its score, or 0.0 where there is none.

    Class attributes:
        budget: policy tokens a response may use, over all turns; a task or the recipe may override it.
        max_turns: the most actions an episode can take; None where the env decides.
        replayable: whether `reset` and the recorded actions rebuild the state. If not, and there is no
            snapshot, an interrupted group restarts.
        waived_probes: probes of `k2rl env check` that do not suit this environment, each with the reason.
        open_ended: its verdicts are `pending`: responses are compared with each other, by the critic.
        rubrics: what a judge looks for in responses, for tasks that do not say so themselves: names of rubrics or of
            files of them (see docs/rubrics.md), or the text itself.
    """

    budget: ClassVar[int] = 256
    max_turns: ClassVar[int | None] = None
    replayable: ClassVar[bool] = True
    waived_probes: ClassVar[Mapping[str, str]] = {}
    open_ended: ClassVar[bool] = False
    rubrics: ClassVar[tuple[str, ...]] = ()
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}  # type: ignore[misc]
    observation_space = UnicodeText()
    action_space = UnicodeText()

    task: Task

    def setup(self) -> None:
        """Load what all rollouts of a worker share. Called once per worker.

        Raises:
            UnavailableError: this machine can't run the environment.
        """

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        """The tasks of a split, in an order fixed by the seed; may be endless. Splits must not overlap."""
        raise NotImplementedError

    def gold(self, task: Task) -> str | Sequence[str] | None:
        """A response that passes (a sequence: one per turn); None where none is known."""
        return task.answer

    def sample_gold(self, task: Task, draw: np.random.Generator) -> str | None:
        """A one-turn response that passes, or is as good as can be: another one with each draw, where the environment
        knows several."""
        gold = self.gold(task)
        return gold if isinstance(gold, str) else None

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Mapping[str, str]:
        """Worse versions of a one-turn response, each with the name of what was done to it (`wrong_number`, …): for
        pairs of which the judge's right choice is known without asking anybody.

        Each must be worse than `response` for certain, of about its length, and as well-formed; what does not apply to
        this response is left out. `draw` is the only source of chance.
        """
        return {}

    def well_formed(self, response: str) -> bool | None:
        """Whether a response has the form of one at all, whatever was asked (None: there is no such form). A judge must
        know more than this rule for its ranking to count."""
        return None

    def reset_task(self, task: Task) -> tuple[str, dict[str, Any]]:
        """Start an episode on `task`: the first observation and info.

        `info["messages"]`, where present, is what the policy sees instead of the observation as a user turn.
        """
        raise NotImplementedError

    def snapshot(self) -> bytes | None:
        """The episode's state, or None to have the recorded actions replayed."""
        return None

    def restore(self, task: Task, state: bytes) -> None:
        """Continue an episode from `snapshot()`."""
        raise NotImplementedError(f"{type(self).__name__} returns snapshots but can't restore them")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode on `options["task"]`, or on a training task drawn by the seed."""
        super().reset(seed=seed)
        task = (options or {}).get("task")
        if task is None:
            pool = list(islice(self.tasks("train", 0), 64))
            task = pool[int(self.np_random.integers(len(pool)))]
        self.task = task
        return self.reset_task(task)

    def spawn(self) -> Env:
        """An instance for one rollout that shares what `setup()` loaded."""
        return copy.copy(self)


class SingleTurnEnv(Env):
    """One prompt, one response, one verdict. Subclasses define `tasks` and `verify`."""

    max_turns: ClassVar[int | None] = 1

    def verify(self, task: Task, response: str) -> Verdict:
        """The verdict on a response."""
        raise NotImplementedError

    def reset_task(self, task: Task) -> tuple[str, dict[str, Any]]:
        if isinstance(task.prompt, str):
            return task.prompt, {"task": task}
        text = "\n\n".join(str(m["content"]) for m in task.prompt)
        return text, {"task": task, "messages": task.messages}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        verdict = self.verify(self.task, action)
        return "", verdict.score or 0.0, True, False, {"verdict": verdict}


class GymTextEnv(Env):
    """A plain gymnasium text env (string observations and actions, no verdicts) under the contract.

    Its tasks are seeds: even ones train, odd ones test. Its reward is the sum of its step rewards, which
    the recipe's `reward_range` maps to [0, 1].
    """

    def __init__(self, env: gymnasium.Env[str, str]) -> None:
        self.inner = env
        self.observation_space = env.observation_space  # type: ignore[assignment]
        self.action_space = env.action_space  # type: ignore[assignment]

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        first = seed * 1_000_000 + (0 if split == "train" else 1)
        for number in range(first, first + 1_000_000, 2):
            observation, info = self.inner.reset(seed=number)
            prompt = tuple(info["messages"]) if "messages" in info else observation
            yield Task(prompt=prompt, reference={"seed": number})

    def gold(self, task: Task) -> None:
        return None

    def reset_task(self, task: Task) -> tuple[str, dict[str, Any]]:
        return self.inner.reset(seed=int(task.reference["seed"]))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.inner.step(action)
        return observation, float(reward), terminated, truncated, info

    def spawn(self) -> GymTextEnv:
        """The wrapped env keeps its own state, so each rollout gets a deep copy."""
        return copy.deepcopy(self)

    def close(self) -> None:
        self.inner.close()


def single_turn(env: Env) -> bool:
    """Whether an episode always ends with its first action."""
    return env.max_turns == 1
