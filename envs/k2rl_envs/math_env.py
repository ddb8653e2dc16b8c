"""Mathematics with a checkable answer: generated arithmetic and algebra, or the rows of a data file.

envs.math: {id: math, args: {level: 3}}                     generated, of one level
envs.math: {id: math, args: {level: {2: 0.7, 4: 0.3}}}      mixed by share
envs.gsm:  {id: math, args: {data: gsm8k.jsonl}}            rows with question and answer
envs.math: {id: math, args: {data: m.jsonl, fields: {prompt: task, answer: result}}}
envs.gsm:  {id: math, args: {data: "hf:openai/gsm8k:main", test_data: "hf:openai/gsm8k:main@test"}}
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
from k2rl_rewards.math_answer import MAX_CHARS, MathAnswer, NoAnswerError, after_hashes, clean, last_boxed

from k2rl import rng, schemas
from k2rl.env import SingleTurnEnv
from k2rl.errors import UserError, did_you_mean
from k2rl.rows import TEST_SHARE, Row, shuffled
from k2rl.types import Split, Task, Verdict
from k2rl_envs import arithmetic, math_corruptions
from k2rl_envs.arguments import refuse, style_shares, with_instruction
from k2rl_envs.levels import Levels, level_shares, mixed

INSTRUCTION = 'Work step by step. End with a line "#### answer", where answer is the final answer alone.'
STYLES = ("worked", "direct", "rechecked")
KINDS = ("arithmetic", "algebra")
_NUMBER = re.compile(r"\d+(\.\d+)?")


class MathEnv(SingleTurnEnv):
    """Math problems scored by `MathAnswer`.

    Args:
        level: for generated problems: a level, a list of levels (equal shares) or level -> share; default 3.
        kinds: which generated problems: "arithmetic", "algebra"; default both.
        styles: how the gold responses to generated problems are written: style -> share of `worked` (step by step,
            the default), `direct` (the bare answer) and `rechecked` (every step twice). For demonstrations.
        data: a file of rows, or `hf:REPO[:CONFIG][@SPLIT]`, instead of generated problems; see `k2rl/records.py`.
        test_data: test rows; without it, `test_share` of the rows of `data` are the test split.
        fields: which column is the prompt, the answer, and (optional) the level; by default told from the columns, by
            the `math` schemas of `k2rl/_assets/schemas.yaml`.
        instruction: a line appended to every prompt; "" appends nothing.
        test_share: the share of the rows held out for testing; default 0.1.

    The answer column may be a plain value (`27.0` is 27), a solution that ends in `#### 72`, or one whose
    last `\\boxed{…}` is the answer.

    Raises:
        UserError: an unknown level, an argument without effect, or data that can't be used.
    """

    budget: ClassVar[int] = 512
    row_kind: ClassVar[str] = "math"

    def __init__(
        self,
        level: Levels | None = None,
        kinds: Sequence[str] | None = None,
        styles: Mapping[str, float] | None = None,
        data: str | None = None,
        test_data: str | None = None,
        fields: Mapping[str, str] | None = None,
        instruction: str = INSTRUCTION,
        test_share: float | None = None,
    ) -> None:
        self.instruction = instruction
        self.reward = MathAnswer()
        self.rows: dict[Split, list[Row]] | None = None
        if data is None:
            refuse("generated problems (no data)", test_data=test_data, fields=fields, test_share=test_share)
            self.shares = level_shares(3 if level is None else level, arithmetic.LEVELS)
            self.kinds = _kinds(kinds)
            if 1 in self.shares and "arithmetic" not in self.kinds:
                raise UserError("level 1 has no algebra: give level 2 or higher, or leave kinds out")
            self.styles = style_shares(styles, STYLES)
            return
        refuse("data rows", level=level, kinds=kinds, styles=styles)
        share = TEST_SHARE if test_share is None else test_share
        self.rows = schemas.load_splits("math", data, test_data, fields, share)
        for rows in self.rows.values():  # A row that can't be used shows now, not in the middle of a run.
            for row in rows:
                _answer(row)

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        if self.rows is not None:
            return map(self.row_task, shuffled(self.rows[split], split, seed))
        streams = {n: map(partial(self._problem_task, n), arithmetic.problems(n, split, seed)) for n in self.shares}
        wanted = {n: filter(lambda task: task.tags[0] in self.kinds, stream) for n, stream in streams.items()}
        return mixed(wanted, self.shares, "math", split, seed)

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str:
        """The worked solution, where there is one; generated problems in the env's `styles`."""
        if "solution" in task.reference:
            return str(task.reference["solution"])
        if "steps" not in task.reference:
            return f"#### {task.answer}"
        return self._in_style(task, rng.generator("math-style", str(task.prompt)))

    def sample_gold(self, task: Task, draw: np.random.Generator) -> str:
        return self._in_style(task, draw) if "steps" in task.reference else self.gold(task)

    def _in_style(self, task: Task, draw: np.random.Generator) -> str:
        style = STYLES[int(draw.choice(len(STYLES), p=self.styles))]
        repeats = {"worked": 1, "direct": 0, "rechecked": 2}[style]
        steps = [step for step in task.reference["steps"] for _ in range(repeats)]
        return " ".join([*steps, f"#### {task.answer}"])

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> dict[str, str]:
        return math_corruptions.corruptions(task.reference, response, draw, partial(self.verify, task))

    def _problem_task(self, level: int, problem: arithmetic.Problem) -> Task:
        answer = str(problem.answer)
        kind = "algebra" if problem.question.startswith("Solve") else "arithmetic"
        reference = {"answer": answer, "level": level, "question": problem.question, "steps": list(problem.steps)}
        prompt = with_instruction(problem.question, self.instruction)
        return Task(prompt, answer, reference, budget=96, tags=(kind, f"level-{level}"))

    def row_task(self, row: Row) -> Task:
        """The task of a row of a data file. Raises `UserError` where it has no answer that can be read."""
        answer, solution = _answer(row)
        reference = {"answer": answer, "question": row.prompt}
        if solution:
            reference["solution"] = solution
        return Task(with_instruction(row.prompt, self.instruction), answer, reference, tags=("data", *_level_tag(row)))


def _kinds(kinds: Sequence[str] | None) -> frozenset[str]:
    chosen = frozenset(KINDS if kinds is None else [kinds] if isinstance(kinds, str) else kinds)
    for kind in chosen or [""]:
        if kind not in KINDS:
            raise UserError(f"unknown kind {kind!r}{did_you_mean(kind, KINDS)}: allowed are {', '.join(KINDS)}")
    return chosen


def _level_tag(row: Row) -> list[str]:
    """`level-3` where the row's level is 3 or "Level 3"; nothing where it has no number ("Level ?")."""
    match = _NUMBER.search(str(row.values.get("level", "")))
    return [f"level-{float(match[0]):g}"] if match else []


def _answer(row: Row) -> tuple[str, str | None]:
    """The gold answer of a row, and its solution text where the column holds more than the answer."""
    value = row.values["answer"]
    if isinstance(value, float) and math.isfinite(value):
        return (str(int(value)) if value.is_integer() else repr(value)), None
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise row.error("answer", f"an answer must be a number or text, got {value!r}")
    text = str(value).strip()
    try:
        marked = last_boxed(text)
    except NoAnswerError as error:
        raise row.error("answer", str(error)) from None
    if marked is None:
        marked = after_hashes(text)
    answer = clean(" ".join((text if marked is None else marked).split()))
    if not answer:
        raise row.error("answer", "the answer is empty")
    if len(answer) > MAX_CHARS:
        raise row.error(
            "answer",
            f"{len(answer)} characters without a final '#### answer' or \\boxed{{answer}} are no answer",
        )
    return answer, text if marked is not None else None
