"""The game of 24: combine a hand of numbers from 1 to 13 to make 24.

Levels (numbers in the hand, the largest):

    1  three up to 13
    2  four up to 8
    3  four up to 13
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import combinations_with_replacement

import numpy as np
from k2rl_rewards.countdown import Countdown

from k2rl import rng
from k2rl.types import Split, Task, Verdict
from k2rl_envs.countdown import INSTRUCTION, combine_prompt
from k2rl_envs.countdown_corruptions import corruptions
from k2rl_envs.countdown_solver import solve
from k2rl_envs.levels import Levels, level_shares, mixed

LEVELS = {1: (3, 13), 2: (4, 8), 3: (4, 13)}


class TwentyFour:
    """Every solvable hand of a level, once, in an order and arrangement fixed by the seed.

    Hands are split as countdown puzzles are, so that the same hand is never training here and test there.
    """

    def __init__(self, level: Levels = 3, instruction: str | None = None) -> None:
        self.shares = level_shares(level, LEVELS)
        self.instruction = INSTRUCTION if instruction is None else instruction
        self.reward = Countdown()

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        streams = {n: map(partial(self._task, n), hands(n, split, seed)) for n in self.shares}
        return mixed(streams, self.shares, "24", split, seed)

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str | None:
        solution = solve(tuple(sorted(task.reference["numbers"])), 24)
        return f"#### {solution}" if solution else None

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> dict[str, str]:
        return corruptions(task.reference, response, draw, partial(self.verify, task))

    def _task(self, level: int, numbers: list[int]) -> Task:
        prompt = combine_prompt(numbers, 24, self.instruction)
        tags = ("24", f"level-{level}")
        return Task(prompt, reference={"numbers": numbers, "target": 24}, budget=128, tags=tags)


def hands(level: int, split: Split, seed: int) -> Iterator[list[int]]:
    """The solvable hands of one level and split."""
    count, largest = LEVELS[level]
    draw = rng.generator("24", split, seed)
    sorted_hands = list(combinations_with_replacement(range(1, largest + 1), count))
    for i in draw.permutation(len(sorted_hands)):
        hand = sorted_hands[int(i)]
        numbers = [hand[int(j)] for j in draw.permutation(count)]
        if rng.in_test_split("countdown", *hand, 24) == (split == "test") and solve(hand, 24):
            yield numbers
