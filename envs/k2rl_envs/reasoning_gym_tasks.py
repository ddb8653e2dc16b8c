"""The data sets of the reasoning_gym package as tasks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any, cast

from k2rl_rewards.grader import attributed
from k2rl_rewards.math_answer import NoAnswerError, after_hashes, last_boxed

from k2rl import rng
from k2rl.errors import UserError, did_you_mean
from k2rl.types import Split, Task, Verdict
from k2rl_envs.arguments import with_instruction
from k2rl_envs.levels import mixed
from k2rl_envs.reasoning_gym_scorer import EVALUATING, pack, scorer, unsafe

INSTRUCTION = "Work step by step. Give the final answer between <answer> and </answer>."
_SEVERAL = re.compile(r",(?!\d{3}\b)|;|\b(?:or|and)\b|.\n.", re.IGNORECASE)


class ReasoningGym:
    """A data set of the reasoning_gym package, scored by its own scorer, of which only an exact 1.0 counts
    (its default pays a share for any answer that contains the gold one).

    Scorers run in a child process: some evaluate the answer with Python or sympy, which may never end. What
    such a scorer gets is searched for calls first (`unsafe`).

    The answer is what follows the last `####` (unless one of the other marks does, or the gold answer itself
    contains such a run), else the last `\\boxed{…}`, else what the last `<answer>…</answer>` holds, else the
    whole response.
    """

    chunk = 500
    deadline_s = 10.0
    max_chars = 10_000
    most_skipped = 1_000
    """Items of the other split in a row after which a narrow data set is taken to have none of this one."""

    def __init__(self, data_set: str, config: Mapping[str, Any] | None = None, instruction: str | None = None) -> None:
        self.name, self.config = data_set, dict(config or {})
        self.instruction = INSTRUCTION if instruction is None else instruction
        for key in ("seed", "size"):
            if key in self.config:
                raise UserError(f"config.{key} is set by k2rl: remove it")
        self._create(seed=0)

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        return mixed({0: self._stream(split, seed)}, {0: 1.0}, "reasoning_gym", most_duplicates=1_000)

    def _stream(self, split: Split, seed: int) -> Iterator[Task]:
        start = rng.key("reasoning_gym", self.name, split, seed)
        skipped = 0
        for number in count():
            data_set = self._create(seed=(start + number * self.chunk) % 2**31)
            for entry in islice(data_set, self.chunk):
                question = entry["question"]
                if rng.in_test_split("reasoning_gym", self.name, question) != (split == "test"):
                    skipped += 1
                    if skipped == self.most_skipped:
                        return
                else:
                    skipped = 0
                    reference = {"data_set": self.name, "entry": pack(entry)}
                    answer = None if entry["answer"] is None else str(entry["answer"])
                    prompt = with_instruction(question, self.instruction)
                    yield Task(prompt, answer, reference, tags=("reasoning_gym", self.name))

    def verify(self, task: Task, response: str) -> Verdict:
        gold = task.answer
        try:
            answer = _final_answer(response, gold)
        except NoAnswerError as error:
            return Verdict.malformed(str(error))
        if len(answer) > max(self.max_chars, 2 * len(gold or "")):
            return Verdict.malformed(f"the answer has {len(answer)} characters, the limit is {self.max_chars}")
        if gold and _SEVERAL.search(answer) and not _SEVERAL.search(gold):
            # Some scorers look at the first number only, or for the gold answer anywhere.
            return Verdict.of(False, f"{answer[:80]!r} lists several candidates")
        if self.name in EVALUATING and (why := unsafe(answer)):
            return Verdict.malformed(why)
        entry = task.reference["entry"]

        def score(candidate: str) -> float:
            args = (self.name, self.config, entry, candidate)
            return float(scorer.call(*args, deadline_s=self.deadline_s))

        return attributed(
            attempt=lambda: score(answer) == 1.0,
            # Where no gold answer is known, a scorer that reads the empty answer is taken to work.
            control=lambda: score(gold or "") == 1.0 or gold is None,
            wrong=f"{self.name} does not accept {answer[:80]!r}",
        )

    def gold(self, task: Task) -> str | None:
        if task.answer is None:
            return None
        return f"<answer>{task.answer}</answer>" if "####" in task.answer else f"#### {task.answer}"

    def _create(self, seed: int) -> Iterable[dict[str, Any]]:
        import reasoning_gym  # Takes seconds; only this game needs it.
        from reasoning_gym.factory import DATASETS

        if self.name not in DATASETS:
            raise UserError(
                f"reasoning_gym has no data set {self.name!r}{did_you_mean(self.name, DATASETS)}: "
                f"it has {', '.join(sorted(DATASETS))}"
            )
        options = [f.name for f in dataclasses.fields(DATASETS[self.name][1]) if f.name not in ("seed", "size")]
        for key in self.config:
            if key not in options:
                raise UserError(
                    f"{self.name} has no option {key!r}{did_you_mean(key, options)}: "
                    f"it has {', '.join(options) or 'none'}"
                )
        try:
            made = reasoning_gym.create_dataset(self.name, seed=seed, size=self.chunk, **self.config)
        except (AssertionError, ValueError, TypeError) as error:
            raise UserError(f"reasoning_gym refuses this config of {self.name}: {error}") from None
        return cast(Iterable[dict[str, Any]], made)


def _final_answer(response: str, gold: str | None) -> str:
    hashes = None if gold and "####" in gold else after_hashes(response)
    if hashes is not None and "<answer>" not in hashes and "\\boxed" not in hashes:
        return hashes  # Otherwise the hashes are a heading.
    boxed = last_boxed(response)
    if boxed is not None:
        return boxed.strip()
    before, closed, _ = response.rpartition("</answer>")
    _, opened, tagged = before.rpartition("<answer>")
    return (tagged if closed and opened else response).strip()
