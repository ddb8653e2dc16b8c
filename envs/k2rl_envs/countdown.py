"""Generated countdown puzzles: combine all numbers with + - * / to reach the target.

Levels (how many numbers, the largest, the largest target):

    1  two numbers up to 20
    2  three numbers up to 10, target up to 60
    3  three numbers up to 20, target up to 100
    4  three numbers up to 40, target up to 200
    5  four numbers up to 20, target up to 100

A demonstration searches aloud as a beginner would: up to two attempts that miss, then one that hits. Which
attempts to try first is not in the demonstrations; it is left to reinforcement learning to find out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from k2rl_rewards.countdown import Countdown

from k2rl import rng
from k2rl.types import Split, Task, Verdict, content_hash
from k2rl_envs.arguments import with_instruction
from k2rl_envs.countdown_corruptions import corruptions
from k2rl_envs.countdown_solver import solve
from k2rl_envs.levels import Levels, level_shares, mixed

LEVELS = {1: (2, 20, 100), 2: (3, 10, 60), 3: (3, 20, 100), 4: (3, 40, 200), 5: (4, 20, 100)}
INSTRUCTION = (
    "Use every number exactly once, with + - * / and parentheses. "
    'Work step by step. End with a line "#### expression", where expression is the solution alone.'
)
MISSES = np.array([0.45, 0.3, 0.25])
"""How often a demonstration shows 0, 1 or 2 attempts that miss."""


class CountdownGame:
    """Generated countdown puzzles; the gold answer searches aloud before it hits."""

    def __init__(self, level: Levels = 3, instruction: str | None = None) -> None:
        self.shares = level_shares(level, LEVELS)
        self.instruction = INSTRUCTION if instruction is None else instruction
        self.reward = Countdown()

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        streams = {n: map(partial(self._task, n), puzzles(n, split, seed)) for n in self.shares}
        return mixed(streams, self.shares, "countdown", split, seed)

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str | None:
        # Keyed by the puzzle alone, so that the text is the same under every name and instruction.
        puzzle = _puzzle(task)
        return self._shown(puzzle, content_hash("countdown", list(puzzle.numbers), puzzle.target))

    def sample_gold(self, task: Task, draw: np.random.Generator) -> str | None:
        return self._shown(_puzzle(task), str(draw.integers(2**32)))

    def _shown(self, puzzle: Puzzle, key: str) -> str | None:
        shown = demonstration(puzzle, key)
        solution = None if shown else solve(puzzle.numbers, puzzle.target)
        return shown or (f"#### {solution}" if solution else None)

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> dict[str, str]:
        return corruptions(task.reference, response, draw, partial(self.verify, task))

    def _task(self, level: int, puzzle: Puzzle) -> Task:
        reference = {"numbers": list(puzzle.numbers), "target": puzzle.target, "level": level}
        prompt = combine_prompt(puzzle.numbers, puzzle.target, self.instruction)
        return Task(prompt, reference=reference, budget=128, tags=("countdown", f"level-{level}"))


def combine_prompt(numbers: Sequence[int], target: int, instruction: str) -> str:
    return with_instruction(f"Use {' '.join(map(str, numbers))} to make {target}", instruction)


@dataclass(frozen=True)
class Puzzle:
    """Numbers to use once each, and the target."""

    numbers: tuple[int, ...]
    target: int


@dataclass(frozen=True)
class Attempt:
    """One way to combine the numbers: the steps (`"8*3=24"`, …), the expression, and its value."""

    steps: tuple[str, ...]
    expression: str
    value: int


def puzzles(level: int, split: Split, seed: int) -> Iterator[Puzzle]:
    """An endless stream of solvable puzzles of one level.

    Puzzles are split by their numbers regardless of order, so a training puzzle is no permutation of a
    test puzzle.
    """
    count, largest, limit = LEVELS[level]
    draw = rng.generator("countdown", level, split, seed)
    while True:
        numbers = tuple(int(n) for n in draw.integers(1, largest + 1, size=count))
        target = attempt(numbers, draw).value
        in_test = rng.in_test_split("countdown", *sorted(numbers), target)
        if 1 <= target <= limit and in_test == (split == "test"):
            yield Puzzle(numbers, target)


def attempt(numbers: Sequence[int], draw: np.random.Generator) -> Attempt:
    """Combine the numbers at random; every intermediate value is a whole number and not negative."""
    terms = [(n, str(n)) for n in numbers]
    steps = []
    while len(terms) > 1:
        i, j = (int(k) for k in draw.permutation(len(terms))[:2])
        (a, left), (b, right) = terms[i], terms[j]
        results = {"+": a + b, "*": a * b}
        if a >= b:
            results["-"] = a - b
        if b and a % b == 0 and b > 1:
            results["/"] = a // b
        sign = list(results)[int(draw.integers(len(results)))]
        steps.append(f"{a}{sign}{b}={results[sign]}")
        merged = (results[sign], f"({left}{sign}{right})")
        terms = [t for k, t in enumerate(terms) if k not in (i, j)] + [merged]
    value, expression = terms[0]
    return Attempt(tuple(steps), expression[1:-1] if len(numbers) > 1 else expression, value)


def _puzzle(task: Task) -> Puzzle:
    return Puzzle(tuple(int(n) for n in task.reference["numbers"]), int(task.reference["target"]))


def demonstration(puzzle: Puzzle, key: str, most_misses: int = 2, tries: int = 20_000) -> str | None:
    """A response that searches aloud and ends in the right expression; None if no solution was met.

    `key` (a task's id) decides which attempts are shown, so that the text is the same everywhere.
    """
    draw = rng.generator("countdown-demonstration", key)
    wanted = int(draw.choice(most_misses + 1, p=MISSES[: most_misses + 1] / MISSES[: most_misses + 1].sum()))
    misses: list[Attempt] = []
    for _ in range(tries):
        found = attempt(puzzle.numbers, draw)
        if found.value == puzzle.target:
            shown = [*misses[:wanted], found]
            lines = [" ".join(a.steps) + (" no" if a is not found else "") for a in shown]
            return " ".join(lines) + f" #### {found.expression}"
        if found.value <= 9_999:
            misses.append(found)
    return None
