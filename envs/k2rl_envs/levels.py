"""Tasks of several levels of difficulty: the share of each, and their streams mixed by share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from k2rl import rng
from k2rl.errors import UserError
from k2rl.types import Task

Levels = int | str | Sequence[int | str] | Mapping[int | str, float]


def level_shares(level: Levels, allowed: Iterable[int]) -> dict[int, float]:
    """Level -> share, summing to 1, from a level, a list of levels or a mapping from level to share.

    Raises:
        UserError: an unknown level, one that is named twice, no level, or a share that is not positive.
    """
    allowed = list(allowed)
    if isinstance(level, Mapping):
        given = list(level.items())
    elif isinstance(level, Sequence) and not isinstance(level, str):
        given = [(n, 1.0) for n in level]
    else:
        given = [(level, 1.0)]
    shares: dict[int, float] = {}
    for name, share in given:
        number = int(name) if isinstance(name, str) and name.isdecimal() else name
        if isinstance(number, bool) or number not in allowed:
            raise UserError(f"unknown level {name!r}: allowed are {', '.join(map(str, allowed))}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
            raise UserError(f"the share of level {name} must be a positive number, got {share!r}")
        if int(number) in shares:
            raise UserError(f"level {name} is named twice")
        shares[int(number)] = float(share)
    if not shares:
        raise UserError(f"no level is given: allowed are {', '.join(map(str, allowed))}")
    total = math.fsum(shares.values())
    return {n: s / total for n, s in shares.items()}


def mixed(
    streams: Mapping[int, Iterator[Task]],
    shares: Mapping[int, float],
    *key: str | int,
    most_duplicates: int = 10_000,
) -> Iterator[Task]:
    """The streams interleaved at random by share, the draws keyed by `key`; no prompt twice.

    A stream that ends, or brings `most_duplicates` known prompts in a row, is left; the others go on.
    """
    draw = rng.generator("levels", *key)
    live, seen = dict(streams), set()
    while live:
        levels = list(live)
        total = math.fsum(shares[n] for n in levels)
        pick = int(draw.choice(len(levels), p=[shares[n] / total for n in levels]))
        stream = live[levels[pick]]
        for _ in range(most_duplicates):
            task = next(stream, None)
            if task is None or task.prompt not in seen:
                break
        else:
            task = None
        if task is None:
            del live[levels[pick]]
            continue
        seen.add(task.prompt)
        yield task
