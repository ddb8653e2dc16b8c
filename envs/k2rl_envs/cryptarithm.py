"""Generated cryptarithms, sums in letters such as SEND + MORE = MONEY.

Levels (digits of the addends, letters whose digit is asked for; the others are given):

    1  two digits, 2 letters
    2  two digits, up to 4 letters
    3  three digits, up to 5 letters
    4  three digits, up to 7 letters
    5  four digits, up to 10 letters
"""

from __future__ import annotations

from string import ascii_uppercase

import numpy as np
from k2rl_rewards.cryptarithm import Cryptarithm

from k2rl_envs.generated import GeneratedGame, Puzzle

LEVELS = {1: (2, 2), 2: (2, 4), 3: (3, 5), 4: (3, 7), 5: (4, 10)}


class CryptarithmGame(GeneratedGame):
    """Generated cryptarithms; split by the numbers behind the letters.

    Some have several solutions; every one that keeps the rules is right.
    """

    name = "cryptarithm"
    levels = LEVELS
    default_level = 2
    default_instruction = (
        'Think first. End with a line "####" and the digit of every letter, as in "#### (letter)=(digit), …".'
    )
    reward = Cryptarithm()

    def puzzle(self, level: int, draw: np.random.Generator) -> Puzzle:
        length, asked = self.levels[level]
        numbers = sorted(int(n) for n in draw.integers(10 ** (length - 1), 10**length, size=2))
        letters = [ascii_uppercase[i] for i in draw.permutation(26)[:10]]
        *addends, total = ("".join(letters[int(d)] for d in str(n)) for n in (*numbers, sum(numbers)))
        used = sorted({*"".join(addends), *total})
        given = {c: letters.index(c) for c in sorted(used[i] for i in draw.permutation(len(used))[asked:])}
        known = "".join(f" {c} is {d}." for c, d in given.items())
        question = (
            f"Solve {' + '.join(addends)} = {total}. Each letter stands for a digit, different letters for different "
            f"digits, and no number starts with 0.{known}"
        )
        answer = ", ".join(f"{c}={letters.index(c)}" for c in used)
        return Puzzle(question, answer, numbers, {"addends": addends, "total": total, "given": given})
