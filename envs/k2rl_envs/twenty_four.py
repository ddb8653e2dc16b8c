"""The game of 24: combine four numbers from 1 to 13 to make 24."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations_with_replacement

from k2rl_rewards.countdown import Countdown

from k2rl import rng
from k2rl.types import Split, Task, Verdict
from k2rl_envs.countdown import INSTRUCTION, combine_prompt
from k2rl_envs.countdown_solver import solve


class TwentyFour:
    """Every solvable hand of four numbers from 1 to 13, once, in an order and arrangement fixed by the seed.

    Hands are split as countdown puzzles are, so that the same hand is never training here and test there.
    """

    def __init__(self, instruction: str | None = None) -> None:
        self.instruction = INSTRUCTION if instruction is None else instruction
        self.reward = Countdown()

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        draw = rng.generator("24", split, seed)
        hands = list(combinations_with_replacement(range(1, 14), 4))
        for i in draw.permutation(len(hands)):
            hand = hands[int(i)]
            numbers = [hand[int(j)] for j in draw.permutation(4)]
            if rng.in_test_split("countdown", *hand, 24) == (split == "test") and solve(hand, 24):
                prompt = combine_prompt(numbers, 24, self.instruction)
                yield Task(prompt, reference={"numbers": numbers, "target": 24}, budget=128, tags=("24",))

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str | None:
        solution = solve(tuple(sorted(task.reference["numbers"])), 24)
        return f"#### {solution}" if solution else None
