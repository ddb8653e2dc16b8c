"""The words and sentence patterns of `writing`'s demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from k2rl_envs.generated import words

NOUNS = words(
    "fox bell boat drum lamp wolf kite bird rope cart tree leaf star coin frog ship goat rose cup owl bear duck ring "
    "key crow deer flag fish horn nest pony seed swan toad vase hat moon apple mouse wagon"
)
PLACES = words("road town hill lake wood")
ENDINGS = (".", "?", "!")


@dataclass(frozen=True)
class Tone:
    """Words that make a tone."""

    adjectives: tuple[str, ...]
    verbs: tuple[str, ...]


TONES = {
    "glad": Tone(words("happy bright sunny merry warm"), words("laughed danced sang")),
    "sad": Tone(words("lonely gray cold bitter empty"), words("cried wept sighed")),
    "calm": Tone(words("quiet gentle still soft slow"), words("rested slept dreamed")),
}
FLAT = Tone(words("big old little new long"), words("stood waited stayed"))
"""Words of no tone."""

PATTERNS: dict[tuple[int, str], tuple[str, ...]] = {
    (0, "."): ("It was {a} and {b}.", "The {p} was {a}.", "They {v} by the {p}."),
    (0, "?"): ("Why was it so {a}?", "Who {v} by the {p}?", "Was the {p} so {a}?"),
    (0, "!"): ("How {a} it was!", "How they {v}!", "What a {a} {p}!"),
    (1, "."): ("The {a} {x} {v}.", "The {x} {v} by the {a} {p}.", "The {x} was {a}."),
    (1, "?"): ("Why was the {x} so {a}?", "Was the {x} {a}?", "Who {v} with the {x}?"),
    (1, "!"): ("How {a} the {x} was!", "How the {x} {v}!", "What a {a} {x}!"),
    (2, "."): ("The {x} and the {y} {v}.", "The {a} {x} {v} by the {y}.", "The {x} {v} with the {a} {y}."),
    (2, "?"): ("Why was the {x} so {a} by the {y}?", "Was the {x} {a} with the {y}?"),
    (2, "!"): ("How {a} the {x} and the {y} were!", "How the {x} {v} with the {y}!"),
}
"""Sentences that tell of so many words and end with that mark: adjectives a and b, a verb, a place, words x and y."""


def write(nouns: Sequence[str], tone: Tone, count: int, ending: str, draw: np.random.Generator) -> str:
    """`count` sentences that tell of all `nouns` with words of the tone, the last one ending with the mark `ending`."""
    told: list[list[str]] = [[] for _ in range(count)]
    for n, noun in enumerate(draw.permutation(nouns).tolist()):
        told[n % count].append(noun)
    order = draw.permutation(count)
    marks = [*["."] * (count - 1), ending]
    return " ".join(_sentence(told[int(i)], tone, mark, draw) for i, mark in zip(order, marks, strict=True))


def _sentence(nouns: Sequence[str], tone: Tone, mark: str, draw: np.random.Generator) -> str:
    adjective, other = (str(w) for w in draw.permutation(tone.adjectives)[:2])
    verb, place = str(draw.choice(tone.verbs)), str(draw.choice(PLACES))
    first, second = (*nouns, "", "")[:2]
    patterns = PATTERNS[len(nouns), mark]
    pattern = patterns[int(draw.integers(len(patterns)))]
    return pattern.format(a=adjective, b=other, v=verb, p=place, x=first, y=second)
