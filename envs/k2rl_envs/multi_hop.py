"""Multi-hop questions: follow several facts of a small invented world to two people, and add up what they own.

Levels (people, relations, hops to the first and to the second person):

    1  three people, 1 relation, 1 hop and none
    2  four people, 2 relations, 1 hop each
    3  six people, 3 relations, 2 hops and 1
    4  eight people, 3 relations, 3 hops and 2
    5  ten people, 4 relations, 4 hops and 3
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from k2rl_rewards.puzzle import ShortAnswer

from k2rl_envs.generated import GeneratedGame, Puzzle, some, words

NAMES = words(
    "Abel Anja Boris Bela Carl Celia Dora Dan Edda Erik Fritz Flora Gerda Gus Hanna Hans Ida Igor Jana Jim Karl Katja "
    "Lara Leo Mia Max Nina Noah Olga Oskar Paula Paul Rita Rolf Sonja Stan Tina Tom Ulla Udo Vera Viktor Wanda Walt"
)
RELATIONS = ("boss", "cousin", "doctor", "landlord", "mentor", "neighbour", "rival", "teacher", "tenant", "trainer")
THINGS = ("books", "buttons", "cards", "coins", "keys", "marbles", "pens", "plants", "shells", "stamps")
LEVELS = {1: (3, 1, 1, 0), 2: (4, 2, 1, 1), 3: (6, 3, 2, 1), 4: (8, 3, 3, 2), 5: (10, 4, 4, 3)}


class MultiHopGame(GeneratedGame):
    """Questions over an invented world; the facts stand in random order, most of them are beside the point.

    The answer is a sum, so that no fact states it.
    """

    name = "multi_hop"
    levels = LEVELS
    default_level = 2
    default_instruction = 'Work step by step. End with a line "#### number", where number is the answer alone.'
    reward = ShortAnswer()

    def puzzle(self, level: int, draw: np.random.Generator) -> Puzzle | None:
        size, kinds, *hops = self.levels[level]
        people = some(NAMES, size, draw)
        relations = some(RELATIONS, kinds, draw)
        thing = THINGS[int(draw.integers(len(THINGS)))]
        owned = dict(zip(people, (int(n) for n in draw.integers(11, 100, size=size)), strict=True))
        world = {(who, r): _other(people, who, draw) for who in people for r in relations}
        facts = [f"The {r} of {who} is {whom}." for (who, r), whom in world.items()]
        facts += [f"{who} has {n} {thing}." for who, n in owned.items()]
        ends, descriptions, steps = [], [], []
        for length in hops:
            person = description = people[int(draw.integers(size))]
            for r in (relations[int(i)] for i in draw.integers(kinds, size=length)):
                steps.append(f"The {r} of {person} is {world[person, r]}.")
                person, description = world[person, r], f"the {r} of {description}"
            ends.append(person)
            descriptions.append(description)
        if ends[0] == ends[1]:
            return None
        first, second = (owned[who] for who in ends)
        question = (
            f"{' '.join(facts[int(i)] for i in draw.permutation(len(facts)))} "
            f"How many {thing} do {descriptions[0]} and {descriptions[1]} have together?"
        )
        answer = str(first + second)
        working = " ".join([*steps, f"{first}+{second}={answer}"])
        return Puzzle(question, answer, question, {"answer": answer}, working)


def _other(people: Sequence[str], who: str, draw: np.random.Generator) -> str:
    """Someone else."""
    shift = int(draw.integers(1, len(people)))
    return people[(people.index(who) + shift) % len(people)]
