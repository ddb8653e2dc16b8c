"""Mathematics with a checkable answer: generated arithmetic and algebra, or the rows of a data file.

envs.math: {id: math, args: {level: 3}}                     generated, of one level
envs.math: {id: math, args: {level: {2: 0.7, 4: 0.3}}}      mixed by share
envs.gsm:  {id: math, args: {data: gsm8k.jsonl}}            rows with question and answer
envs.math: {id: math, args: {data: m.jsonl, fields: {prompt: problem, answer: solution}}}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from k2rl_rewards.math_answer import MAX_CHARS, MathAnswer, NoAnswerError, after_hashes, clean, last_boxed

from k2rl import rng
from k2rl.env import SingleTurnEnv
from k2rl.errors import UserError, did_you_mean
from k2rl.types import Split, Task, Verdict
from k2rl_envs import arithmetic
from k2rl_envs.rows import TEST_SHARE, Row, load_splits, shuffled

INSTRUCTION = 'Work step by step. End with a line "#### answer", where answer is the final answer alone.'
FIELDS = {"prompt": "question", "answer": "answer"}

Levels = int | str | Sequence[int | str] | Mapping[int | str, float]


class MathEnv(SingleTurnEnv):
    """Math problems scored by `MathAnswer`.

    Args:
        level: for generated problems: a level, a list of levels (equal shares) or level -> share; default 3.
        data: a file of rows instead of generated problems; see `rows.py`.
        test_data: a file of test rows; without it, `test_share` of the rows of `data` are the test split.
        fields: which column is the prompt and which the answer; default question and answer.
        instruction: a line appended to every prompt; "" appends nothing.
        test_share: the share of the rows held out for testing; default 0.1.

    The answer column may be a plain value (`27.0` is 27), a solution that ends in `#### 72`, or one whose
    last `\\boxed{…}` is the answer.

    Raises:
        UserError: an unknown level, an argument without effect, or data that can't be used.
    """

    budget: ClassVar[int] = 512

    def __init__(
        self,
        level: Levels | None = None,
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
            return
        refuse("data rows", level=level)
        columns = field_map(fields, FIELDS)
        self.rows = load_splits(data, test_data, columns, TEST_SHARE if test_share is None else test_share)
        for rows in self.rows.values():  # A row that can't be used shows now, not in the middle of a run.
            for row in rows:
                _answer(row)

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        if self.rows is not None:
            return map(self._row_task, shuffled(self.rows[split], split, seed))
        streams = {n: map(self._problem_task(n), arithmetic.problems(n, split, seed)) for n in self.shares}
        return mixed(streams, self.shares, "math", split, seed)

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str:
        """The worked solution, where there is one."""
        if "solution" in task.reference:
            return str(task.reference["solution"])
        return " ".join([*task.reference.get("steps", ()), f"#### {task.answer}"])

    def _problem_task(self, level: int) -> Any:
        def make(problem: arithmetic.Problem) -> Task:
            answer = str(problem.answer)
            kind = "algebra" if problem.question.startswith("Solve") else "arithmetic"
            reference = {
                "answer": answer,
                "level": level,
                "question": problem.question,
                "steps": list(problem.steps),
            }
            prompt = with_instruction(problem.question, self.instruction)
            return Task(prompt, answer, reference, budget=96, tags=(kind, f"level-{level}"))

        return make

    def _row_task(self, row: Row) -> Task:
        answer, solution = _answer(row)
        reference = {"answer": answer, "question": row.prompt}
        if solution:
            reference["solution"] = solution
        return Task(with_instruction(row.prompt, self.instruction), answer, reference, tags=("data",))


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


# --- shared with the other environments of generated and tabular tasks --------------------------------------


def with_instruction(question: str, instruction: str) -> str:
    return f"{question}\n{instruction}" if instruction else question


def refuse(chosen: str, **arguments: object) -> None:
    """Raise `UserError` for an argument that is set but has no effect in the chosen set-up."""
    for name, value in arguments.items():
        if value is not None:
            raise UserError(f"{name} has no effect with {chosen}: remove it, got {value!r}")


def field_map(given: Mapping[str, str] | None, default: Mapping[str, str]) -> dict[str, str]:
    """The default field map with the user's columns in it."""
    for name, column in (given or {}).items():
        if name not in default:
            raise UserError(f"unknown field {name!r}{did_you_mean(name, default)}: allowed are {', '.join(default)}")
        if not isinstance(column, str):
            raise UserError(f"fields.{name} must name a column, got {column!r}")
    return {**default, **(given or {})}


def level_shares(level: Levels, allowed: Iterable[int]) -> dict[int, float]:
    """Level -> share, summing to 1, from a level, a list of levels or a mapping from level to share.

    Raises:
        UserError: an unknown level, one that is named twice, no level, or a share that is not positive.
    """
    allowed = list(allowed)
    if isinstance(level, Mapping):
        given = list(level.items())
    elif isinstance(level, Sequence) and not isinstance(level, str):
        given = [(n, 1.0) for n in level]
    else:
        given = [(level, 1.0)]
    shares: dict[int, float] = {}
    for name, share in given:
        number = int(name) if isinstance(name, str) and name.isdecimal() else name
        if isinstance(number, bool) or number not in allowed:
            raise UserError(f"unknown level {name!r}: allowed are {', '.join(map(str, allowed))}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
            raise UserError(f"the share of level {name} must be a positive number, got {share!r}")
        if int(number) in shares:
            raise UserError(f"level {name} is named twice")
        shares[int(number)] = float(share)
    if not shares:
        raise UserError(f"no level is given: allowed are {', '.join(map(str, allowed))}")
    total = math.fsum(shares.values())
    return {n: s / total for n, s in shares.items()}


def mixed(
    streams: Mapping[int, Iterator[Task]],
    shares: Mapping[int, float],
    *key: str | int,
    most_duplicates: int = 10_000,
) -> Iterator[Task]:
    """The streams interleaved at random by share, the draws keyed by `key`; no prompt twice.

    A stream that ends, or brings `most_duplicates` known prompts in a row, is left; the others go on.
    """
    draw = rng.generator("levels", *key)
    live, seen = dict(streams), set()
    while live:
        levels = list(live)
        total = math.fsum(shares[n] for n in levels)
        pick = int(draw.choice(len(levels), p=[shares[n] / total for n in levels]))
        stream = live[levels[pick]]
        for _ in range(most_duplicates):
            task = next(stream, None)
            if task is None or task.prompt not in seen:
                break
        else:
            task = None
        if task is None:
            del live[levels[pick]]
            continue
        seen.add(task.prompt)
        yield task
