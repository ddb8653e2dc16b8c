"""What the games of generated puzzles have in common: levels, splits by content, and what is no puzzle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np

from k2rl import rng
from k2rl.protocols import Reward
from k2rl.types import Split, Task, Verdict, content_hash
from k2rl_envs.arguments import with_instruction
from k2rl_envs.levels import Levels, level_shares, mixed


@dataclass(frozen=True)
class Puzzle:
    """A question with its answer. `reference` is what the reward needs, `working` leads a demonstration to the answer,
    and `identity` (JSON) is what two puzzles that are the same in disguise have in common: it decides the split."""

    question: str
    answer: str
    identity: Any
    reference: Mapping[str, Any] = field(default_factory=dict)
    working: str = ""


class GeneratedGame:
    """A game of generated puzzles. A subclass says what its name, levels and reward are and how to draw a puzzle.

    Class attributes:
        name: its name, also that of its draws and its tag.
        levels: level -> settings, whatever `puzzle` makes of them.
        default_level: the level that is played where none is asked for.
        default_instruction: how to answer, the last line of a prompt.
        reward: its checker.
    """

    name: ClassVar[str]
    levels: ClassVar[Mapping[int, Any]]
    default_level: ClassVar[int]
    default_instruction: ClassVar[str]
    reward: ClassVar[Reward]

    def __init__(self, level: Levels | None = None, instruction: str | None = None) -> None:
        self.shares = level_shares(self.default_level if level is None else level, self.levels)
        self.instruction = self.default_instruction if instruction is None else instruction

    def puzzle(self, level: int, draw: np.random.Generator) -> Puzzle | None:
        """A puzzle of a level; None if this draw led to none."""
        raise NotImplementedError

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        streams = {n: map(partial(self._task, n), self.puzzles(n, split, seed)) for n in self.shares}
        return mixed(streams, self.shares, self.name, split, seed)

    def puzzles(self, level: int, split: Split, seed: int) -> Iterator[Puzzle]:
        """An endless stream of puzzles of one level and split, none of which shows its answer."""
        draw = rng.generator(self.name, level, split, seed)
        while True:
            found = self.puzzle(level, draw)
            if found is None or rng.in_test_split(self.name, content_hash(found.identity)) != (split == "test"):
                continue
            # The instruction of the game, not of the user, so that the puzzles are the same under every instruction.
            if found.answer.casefold() not in f"{found.question}\n{self.default_instruction}".casefold():
                yield found

    def verify(self, task: Task, response: str) -> Verdict:
        return type(self).reward(response, task.reference)

    def gold(self, task: Task) -> str:
        working, mark = task.reference.get("working"), "####\n" if "\n" in str(task.answer) else "#### "
        return f"{working} {mark}{task.answer}" if working else f"{mark}{task.answer}"

    def _task(self, level: int, puzzle: Puzzle) -> Task:
        reference = {**puzzle.reference, "level": level}
        if puzzle.working:
            reference["working"] = puzzle.working
        prompt = with_instruction(puzzle.question, self.instruction)
        return Task(prompt, puzzle.answer, reference, tags=(self.name, f"level-{level}"))


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def some(of: Sequence[str], count: int, draw: np.random.Generator) -> list[str]:
    """Different ones, in random order."""
    return [of[int(i)] for i in draw.permutation(len(of))[:count]]
