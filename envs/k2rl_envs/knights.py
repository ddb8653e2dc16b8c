"""Knights and knaves: who tells the truth? Generated puzzles, each with exactly one solution, or rows of a file.

Levels of generated puzzles (people, what each of them may say):

    1  two people, up to two facts joined by and, or
    2  three people, up to two facts joined by and, or
    3  three people, two facts joined by and, or, if, if and only if
    4  four people, as level 3
    5  six people, as level 3
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from k2rl_rewards.knights import KnightsAndKnaves, statement

from k2rl import schemas
from k2rl.rows import TEST_SHARE, Row, shuffled
from k2rl.types import Split, Task, Verdict
from k2rl_envs.arguments import refuse, with_instruction
from k2rl_envs.generated import GeneratedGame, Puzzle, some, words
from k2rl_envs.knights_solver import Statement, solutions
from k2rl_envs.levels import Levels

INSTRUCTION = (
    'Work step by step. End with a line that starts with "####" and says of everyone whether they are a '
    'knight or a knave, in the form "#### (name) is a knight, (name) is a knave".'
)
NAMES = words(
    "Ada Amir Ben Bruno Cara Chen Dana Diego Elif Emil Fay Finn Gita Greta Hugo Ines Ivan Jade Jonas Kira Kofi Lena "
    "Luca Maya Milo Nils Nora Omar Otto Pia Priya Quinn Rosa Ruben Sara Sven Tara Theo Uma Vera Wen Yara Yusuf Zoe"
)
LEVELS = {
    1: (2, ("fact", "and", "or")),
    2: (3, ("fact", "and", "or")),
    3: (3, ("and", "or", "->", "<=>")),
    4: (4, ("and", "or", "->", "<=>")),
    5: (6, ("and", "or", "->", "<=>")),
}
_JOINED = {"and": "{} and {}", "or": "{} or {}", "->": "if {} then {}", "<=>": "{} if and only if {}"}


def knights_and_knaves(
    level: Levels | None = None,
    data: str | None = None,
    test_data: str | None = None,
    fields: Mapping[str, str] | None = None,
    test_share: float | None = None,
    instruction: str | None = None,
) -> GeneratedKnights | Knights:
    """The puzzles of a file where there is one, else generated ones."""
    if data is None:
        refuse("game knights without data", test_data=test_data, fields=fields, test_share=test_share)
        return GeneratedKnights(level, instruction)
    refuse("game knights with data", level=level)
    return Knights(data, test_data, fields, TEST_SHARE if test_share is None else test_share, instruction)


class GeneratedKnights(GeneratedGame):
    """Generated puzzles; split by what is said, whoever says it, in whatever order."""

    name = "knights"
    levels = LEVELS
    default_level = 2
    default_instruction = INSTRUCTION
    reward = KnightsAndKnaves()

    def puzzle(self, level: int, draw: np.random.Generator) -> Puzzle | None:
        people, forms = self.levels[level]
        statements = [_statement(people, forms, draw) for _ in range(people)]
        found = solutions(statements)
        if len(found) != 1:
            return None
        names = some(NAMES, people, draw)
        said = " ".join(f'{n} says: "{_spoken(s, names)}."' for n, s in zip(names, statements, strict=True))
        question = (
            "Knights always tell the truth, knaves always lie, and everyone is one of the two. You meet "
            f"{', '.join(names[:-1])} and {names[-1]}. {said} Who is a knight and who is a knave?"
        )
        solution = list(found[0])
        reference = {"names": names, "solution": solution, "statements": statements}
        shapes = sorted(_shape(s, speaker) for speaker, s in enumerate(statements))
        return Puzzle(question, statement(names, solution), shapes, reference)


def _statement(people: int, forms: Sequence[str], draw: np.random.Generator) -> Statement:
    form = forms[int(draw.integers(len(forms)))]
    facts = [
        ["telling-truth" if draw.integers(2) else "lying", int(person)]
        for person in draw.permutation(people)[: 1 if form == "fact" else 2]
    ]
    return facts[0] if form == "fact" else [form, *facts]


def _spoken(said: Statement, names: Sequence[str]) -> str:
    if said[0] in _JOINED:
        return _JOINED[said[0]].format(*(_spoken(part, names) for part in said[1:]))
    return f"{names[said[1]]} is a {'knight' if said[0] == 'telling-truth' else 'knave'}"


def _shape(said: Statement, speaker: int) -> list[Any]:
    """What is said, with the people told apart only as the speaker and others; equal for puzzles that differ in names
    and order."""
    if said[0] not in _JOINED:
        return [said[0], said[1] == speaker]
    parts = [_shape(part, speaker) for part in said[1:]]
    return [said[0], *(parts if said[0] == "->" else sorted(parts))]


class Knights:
    """Knights-and-knaves puzzles from a file with a quiz, the names, and who is a knight."""

    def __init__(
        self,
        data: str,
        test_data: str | None,
        fields: Mapping[str, str] | None,
        test_share: float,
        instruction: str | None,
    ) -> None:
        self.rows = schemas.load_splits("knights", data, test_data, fields, test_share)
        self.instruction = INSTRUCTION if instruction is None else instruction
        self.reward = KnightsAndKnaves()
        for rows in self.rows.values():
            for row in rows:
                row_task(row, self.instruction)

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return (row_task(row, self.instruction) for row in shuffled(self.rows[split], split, seed))

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str:
        return f"#### {task.answer}"


def row_task(row: Row, instruction: str) -> Task:
    """The task of a row of a data file.

    Raises:
        UserError: its names are no distinct names, or its solution is not one true or false for each.
    """
    names, solution = row.values["names"], row.values["solution"]
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        raise row.error("names", f"must be a list of names, got {names!r}")
    if len({n.casefold() for n in names}) < len(names):
        raise row.error("names", f"a name occurs twice in {names!r}")
    if not (isinstance(solution, list) and all(isinstance(s, bool) for s in solution)):
        raise row.error("solution", f"must be a list of true (knight) and false (knave), got {solution!r}")
    if len(solution) != len(names):
        raise row.error("solution", f"{len(solution)} entries for {len(names)} names")
    reference = {"names": list(names), "solution": list(solution)}
    prompt = with_instruction(row.prompt, instruction)
    return Task(prompt, statement(names, solution), reference, tags=("knights", f"people-{len(names)}"))
