"""Knights and knaves: who tells the truth?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from k2rl_rewards.knights import KnightsAndKnaves, statement

from k2rl.errors import UserError
from k2rl.types import Split, Task, Verdict
from k2rl_envs.arguments import with_instruction
from k2rl_envs.rows import TEST_SHARE, Row, field_map, load_splits, shuffled

INSTRUCTION = (
    'Work step by step. End with a line that starts with "####" and says of everyone whether they are a '
    'knight or a knave, in the form "#### (name) is a knight, (name) is a knave".'
)


class Knights:
    """Knights-and-knaves puzzles from a file with a quiz, the names, and who is a knight."""

    fields: ClassVar[dict[str, str]] = {"prompt": "quiz", "names": "names", "solution": "solution"}

    def __init__(
        self,
        data: str | None = None,
        test_data: str | None = None,
        fields: Mapping[str, str] | None = None,
        test_share: float = TEST_SHARE,
        instruction: str | None = None,
    ) -> None:
        if data is None:
            raise UserError("game knights needs data: a .parquet or .jsonl file with quiz, names and solution")
        self.rows = load_splits(data, test_data, field_map(fields, self.fields), test_share)
        self.instruction = INSTRUCTION if instruction is None else instruction
        self.reward = KnightsAndKnaves()
        for rows in self.rows.values():
            for row in rows:
                _check_knights(row)

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return map(self._task, shuffled(self.rows[split], split, seed))

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str:
        return f"#### {task.answer}"

    def _task(self, row: Row) -> Task:
        names, solution = list(row.values["names"]), list(row.values["solution"])
        prompt = with_instruction(row.prompt, self.instruction)
        reference = {"names": names, "solution": solution}
        return Task(prompt, statement(names, solution), reference, tags=("knights", f"people-{len(names)}"))


def _check_knights(row: Row) -> None:
    names, solution = row.values["names"], row.values["solution"]
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        raise row.error("names", f"must be a list of names, got {names!r}")
    if len({n.casefold() for n in names}) < len(names):
        raise row.error("names", f"a name occurs twice in {names!r}")
    if not (isinstance(solution, list) and all(isinstance(s, bool) for s in solution)):
        raise row.error("solution", f"must be a list of true (knight) and false (knave), got {solution!r}")
    if len(solution) != len(names):
        raise row.error("solution", f"{len(solution)} entries for {len(names)} names")
