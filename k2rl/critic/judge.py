"""Which of two responses is better, as the policy sees it in its judging role.

A verdict is read off the log-probs of two labels (one forward pass, nothing sampled), or off a sampled argument whose
last line must state it. Both orders are always asked. What can't be read is no verdict: it is counted, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from k2rl import rubrics
from k2rl.critic.prompt import Comparison, JudgePrompt
from k2rl.critic.records import Judgement
from k2rl.env import Env
from k2rl.errors import UserError
from k2rl.protocols import Request, Sampler
from k2rl.types import Task

_VERDICT = re.compile(r"Verdict: ([12])")
CORRECT = "correctness"
"""The rubric that verified pairs are judged by."""


@dataclass
class Judge:
    """Comparisons through a sampler.

    `context` bounds the prompt's tokens (0: no bound). `reasoning_tokens` of a sampled argument (0: none, the labels'
    log-probs decide). `asked` and `unreadable` count the verdicts asked for, one for each order, and those not reached.
    """

    prompt: JudgePrompt
    sampler: Sampler
    context: int = 0
    reasoning_tokens: int = 0
    asked: int = field(default=0, init=False)
    unreadable: int = field(default=0, init=False)

    def judge(self, comparisons: Sequence[Comparison]) -> list[Judgement | None]:
        """Both orders of each comparison, its first response as A. None where a verdict could not be read, or the
        comparison is longer than the model takes."""
        turned = [Comparison(c.messages, c.criteria, c.second, c.first) for c in comparisons]
        p_first = self.p_first([*comparisons, *turned])
        return [
            None if forward is None or backward is None else Judgement(forward, 1.0 - backward)
            for forward, backward in zip(p_first[: len(turned)], p_first[len(turned) :], strict=True)
        ]

    def p_first(self, comparisons: Sequence[Comparison]) -> list[float | None]:
        """The probability that the response shown first is the better one, in the one order given."""
        prompts = [self.prompt.ask(c).ids for c in comparisons]
        room = self.context - max(self.reasoning_tokens, 1) if self.context else 0
        fits = [i for i, ids in enumerate(prompts) if not room or len(ids) <= room]
        found: list[float | None] = [None] * len(prompts)
        read = self._argued if self.reasoning_tokens else self._labelled
        for i, p in zip(fits, read([prompts[i] for i in fits]), strict=True):
            found[i] = p
        self.asked += len(found)
        self.unreadable += sum(p is None for p in found)
        return found

    def _labelled(self, prompts: Sequence[tuple[int, ...]]) -> list[float | None]:
        if not prompts:
            return []
        logprobs_P_N = self.sampler.score_labels(prompts, self.prompt.labels).astype(np.float64)
        odds = logprobs_P_N[:, 0] - logprobs_P_N[:, 1]
        return [float(p) for p in 1.0 / (1.0 + np.exp(-np.clip(odds, -500, 500)))]

    def _argued(self, prompts: Sequence[tuple[int, ...]]) -> list[float | None]:
        """1 for the first, 0 for the second, by the last line of a greedy argument; None where that says neither, or
        more than one line gives a verdict."""
        chat, found = self.prompt.chat, list[float | None]([None] * len(prompts))
        requests = [
            Request(f"judge-{i}", ids, (i,), self.reasoning_tokens, 0.0, chat.stop_ids) for i, ids in enumerate(prompts)
        ]
        self.sampler.submit(requests)
        left = len(requests)
        while left:
            for done in self.sampler.poll():
                left -= 1
                if done.finish == "stop":
                    found[int(done.request_id.removeprefix("judge-"))] = stated(chat.decode(done.ids))
        return found


def stated(argument: str) -> float | None:
    """The verdict an argument ends with: 1 for the first response, 0 for the second; None where there is none."""
    lines = [line.strip() for line in argument.strip().splitlines()]
    verdicts = [line for line in lines if line.startswith("Verdict:")]
    match = _VERDICT.fullmatch(lines[-1]) if lines and len(verdicts) == 1 else None
    return None if match is None else float(match[1] == "1")


def rubrics_of(env: Env, task: Task | None = None, more: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of what responses are judged by: of open-ended tasks their own rubrics, or else their environment's,
    and `more`; of others that they are right.

    Raises:
        UserError: an environment's or a task's rubrics are a single text.
    """
    return (*_names((task and task.rubrics) or env.rubrics), *more) if env.open_ended else (CORRECT,)


def _names(names: Sequence[str]) -> Sequence[str]:
    if isinstance(names, str):
        raise UserError(f"rubrics is the text {names!r:.60}: give a tuple of names or texts, such as ({names!r:.60},)")
    return names


def criteria_of(env: Env, prompt: JudgePrompt, task: Task | None = None, more: Sequence[str] = ()) -> tuple[str, ...]:
    """What responses are judged by, in words that suit the model."""
    return rubrics.criteria(resolved(rubrics_of(env, task, more)), short=prompt.short)


@cache
def resolved(names: tuple[str, ...]) -> tuple[rubrics.Rubric, ...]:
    """The rubrics of these names, whose files are read once."""
    return rubrics.resolve(names)
