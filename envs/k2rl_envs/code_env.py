"""Programming tasks checked by running the program in a sandbox: generated ones, or the rows of a data file.

envs.code: {id: code, args: {level: {2: 0.5, 3: 0.5}}}                          generated, of two levels
envs.mbpp: {id: code, args: {data: mbpp.jsonl, gold: drop}}                      MBPP, HumanEval or contest rows
envs.mine: {id: code, args: {data: my.jsonl, fields: {prompt: task, tests: asserts}}}
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np
from k2rl_rewards.unit_tests import UnitTests

from k2rl import rng, schemas
from k2rl.env import SingleTurnEnv
from k2rl.errors import RunError, UserError, did_you_mean
from k2rl.progress import console
from k2rl.rows import TEST_SHARE, Row, shuffled
from k2rl.types import Split, Status, Task, Verdict, content_hash
from k2rl_envs import code_corruptions, code_rows, programs
from k2rl_envs.arguments import refuse, style_shares, with_instruction
from k2rl_envs.levels import Levels, level_shares, mixed

INSTRUCTION = "Answer with the whole Python program in one fence: ```python."
GOLD = ("check", "drop", "trust")
GENERATED_LIMITS = {"cpu_s": 1.0, "memory_mb": 256}
"""Of programs for generated tasks, which have next to nothing to do."""


class CodeEnv(SingleTurnEnv):
    """Programs scored by `UnitTests`: all tests must pass.

    Args:
        level: for generated tasks: a level, a list of levels (equal shares) or level -> share; default 2.
        styles: how the gold answers to generated tasks are written: style -> share of `checked` (orders tried on the
            example first, the default), `direct` (the function alone) and `explained` (at length). For demonstrations.
        data: a file of rows instead of generated tasks; see `k2rl/records.py` for what can be read.
        test_data: a file of test rows; without it, `test_share` of the rows of `data` are the test split.
        format: what the rows look like: a schema of `k2rl/_assets/schemas.yaml`; by default told from their columns.
        fields: which column holds what, where it differs from the format.
        test_share: the share of the rows held out for testing; default 0.1.
        show_tests: how many of a row's tests its prompt shows; default 1 where they are assert lines or cases (they
            tell the function's name), else 0.
        gold: what to do about rows whose own solution fails their tests: `check` (the default) refuses the file,
            `drop` leaves them out and says how many, `trust` does not look.
        share: score the share of the tests that pass, instead of all or nothing.
        instruction: a line appended to every prompt; "" appends nothing.
        sandbox: where programs run: "local", "http://host:port" (`k2rl sandbox serve`), …; see `k2rl.sandbox`.
        limits: cpu_s, wall_s, memory_mb, output_bytes of a program, where they differ from the defaults of
            `protocols.Limits` or, for generated tasks, `GENERATED_LIMITS`.

    Raises:
        UserError: an unknown level or format, an argument without effect, or data that can't be used: a row without
            tests, test source that does not parse, a solution that fails; names file and line.
        UnavailableError: this machine has no jail for programs (when rows are checked, or in `setup`).
    """

    budget: ClassVar[int] = 1024
    row_kind: ClassVar[str] = "code"

    def __init__(
        self,
        level: Levels | None = None,
        styles: Mapping[str, float] | None = None,
        data: str | None = None,
        test_data: str | None = None,
        format: str | None = None,
        fields: Mapping[str, str] | None = None,
        test_share: float | None = None,
        show_tests: int | None = None,
        gold: str | None = None,
        share: bool = False,
        instruction: str = INSTRUCTION,
        sandbox: str = "local",
        limits: Mapping[str, float] | None = None,
    ) -> None:
        self.instruction = instruction
        self.reward = UnitTests(sandbox, share, limits)
        self.generated_reward = UnitTests(sandbox, share, GENERATED_LIMITS | dict(limits or {}))
        self.show_tests = show_tests
        self.splits: dict[Split, list[Task]] | None = None
        about_rows = {"test_data": test_data, "format": format, "fields": fields, "test_share": test_share}
        if data is None:
            refuse("generated tasks (no data)", **about_rows, show_tests=show_tests, gold=gold)
            self.shares = level_shares(2 if level is None else level, programs.LEVELS)
            self.styles = style_shares(styles, programs.STYLES)
            return
        refuse("data rows", level=level, styles=styles)
        self.waived_probes = {  # type: ignore[misc]  # Generated tasks all ask for the same function.
            "candidates": "a program may define other functions beside the one that is asked for"
        }
        if gold not in (None, *GOLD):
            raise UserError(f"unknown gold {gold!r}{did_you_mean(str(gold), GOLD)}: allowed are {', '.join(GOLD)}")
        if show_tests is not None and (type(show_tests) is not int or show_tests < 0):
            raise UserError(f"show_tests must be a whole number of 0 or more, got {show_tests!r}")
        share_held_out = TEST_SHARE if test_share is None else test_share
        rows = schemas.load_splits("code", data, test_data, fields, share_held_out, name=format, same=_whole)
        found = {split: [(row, self.row_task(row)) for row in some] for split, some in rows.items()}
        failing = {} if gold == "trust" else self._failing([pair for some in found.values() for pair in some])
        if failing and gold != "drop":
            raise _own_solutions_fail(failing)
        if failing:
            _note(f"{data}: {len(failing)} rows left out, whose own solutions fail: {', '.join(failing)}")
        self.splits = {s: [task for row, task in some if row.place not in failing] for s, some in found.items()}

    def setup(self) -> None:
        """Start the sandbox, so that a machine without one is known before a run begins."""
        _ = self.reward.sandbox

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        if self.splits is not None:
            return shuffled(self.splits[split], split, seed)
        streams = {n: map(partial(self._program, n), programs.programs(n, split, seed)) for n in self.shares}
        return mixed(streams, self.shares, "code", split, seed)

    def verify(self, task: Task, response: str) -> Verdict:
        reward = self.generated_reward if "program" in task.reference else self.reward
        return reward(response, task.reference)

    def gold(self, task: Task) -> str | None:
        """The row's solution; for generated tasks an answer in one of the env's `styles`."""
        if "program" not in task.reference:
            return task.answer
        question = str(task.reference["question"])
        return self._in_style(task, rng.generator("code-style", question), question)

    def sample_gold(self, task: Task, draw: np.random.Generator) -> str | None:
        if "program" not in task.reference:
            return task.answer
        return self._in_style(task, draw, str(draw.integers(2**32)))

    def _in_style(self, task: Task, draw: np.random.Generator, key: str) -> str:
        style = int(draw.choice(len(self.styles), p=self.styles))
        program = programs.Program.from_json(task.reference["program"])
        return programs.demonstration(program, programs.STYLES[style], key)

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> dict[str, str]:
        return code_corruptions.corruptions(task.reference, response, draw) if "program" in task.reference else {}

    def row_task(self, row: Row) -> Task:
        """The task of a row of a data file. Raises `UserError` where its tests can't be used."""
        reference, solution = code_rows.reference_and_solution(row)
        prompt = row.prompt.strip()
        if "prompt" in reference:
            prompt = f"Complete this program:\n```python\n{prompt}\n```"
        count = int("tests" in reference or "cases" in reference) if self.show_tests is None else self.show_tests
        shown = code_rows.examples(reference, count)
        if shown:
            prompt = "\n".join([prompt, f"It should pass {'this test' if len(shown) == 1 else 'these tests'}:", *shown])
        return Task(with_instruction(prompt, self.instruction), solution, reference, tags=("data",))

    def _failing(self, found: Sequence[tuple[Row, Task]]) -> dict[str, tuple[Row, str]]:
        """The rows whose own solution does not pass, by place, with what is wrong."""
        asked = [(row, task) for row, task in found if task.answer is not None]
        with ThreadPoolExecutor(os.cpu_count()) as workers:
            verdicts = list(workers.map(lambda pair: _verdict(self.reward, pair[1]), asked))
        for (row, _), verdict in zip(asked, verdicts, strict=True):
            if not verdict.scored:
                raise RunError(f"{row.place}: its solution can't be checked: {verdict.detail}")
        return {
            row.place: (row, verdict.detail)
            for (row, _), verdict in zip(asked, verdicts, strict=True)
            if verdict.status is not Status.CORRECT
        }

    def _program(self, level: int, program: programs.Program) -> Task:
        question = program.specification
        reference = {
            "fn": "f",
            "cases": [[[argument], expected] for argument, expected in program.cases],
            "level": level,
            "question": question,
            "program": program.to_json(),
        }
        tags = (program.steps[0].takes, f"level-{level}")
        return Task(with_instruction(question, self.instruction), None, reference, budget=384, tags=tags)


_verdicts: dict[str, Verdict] = {}


def _verdict(reward: UnitTests, task: Task) -> Verdict:
    """The verdict on a task's own solution, found once per process: every worker makes its own environment."""
    key = content_hash(reward.place, str(reward.limits), task.answer, dict(task.reference))
    if key not in _verdicts:
        _verdicts[key] = reward(task.answer or "", task.reference)
    return _verdicts[key]


@lru_cache
def _note(text: str) -> None:
    """Say it, once per process."""
    console.print(text, markup=False, soft_wrap=True)


def _own_solutions_fail(failing: Mapping[str, tuple[Row, str]]) -> UserError:
    (row, detail), *others = failing.values()
    more = [r.place for r, _ in others[:5]] + ([f"{len(others) - 5} more"] if len(others) > 5 else [])
    also = f" (also {', '.join(more)})" if more else ""
    return row.error("solution", f"the row's own solution fails: {detail}{also}; gold: drop leaves such rows out")


def _whole(row: Row) -> str:
    """What makes two rows the same: prompt and tests. (MBPP asks for several things in the same words.)"""
    return content_hash({name: value for name, value in row.values.items() if name != "solution"})
