"""Responses that go round in circles, ended while they are sampled: K1.5 stops such rollouts early (arXiv 2501.12599
section 2.6.2). It says nothing of how; the rule here is our own choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from k2rl.protocols import Request

LONGEST = 64
"""The most tokens of what is repeated."""
LEAST = 4
"""What is shorter than this is asked to repeat for longer: a number has its zeros, a line its indentation."""
_EVERY = 8


def circling(request: Request, ids: Sequence[int]) -> bool:
    """Whether a sample of `request` that has said `ids` is to be ended.

    A sampler asks after each token; it is looked up at every eighth token of the turn, wherever a pause cut the turn
    into requests, so that interruptions don't change where it ends.
    """
    times = request.max_repeats
    if times is None or (request.first_position + len(ids)) % _EVERY:
        return False
    tail = list(ids[-LONGEST * times :])
    before = min(request.first_position, LONGEST * times - len(tail))
    return repeats([*request.prompt_ids[len(request.prompt_ids) - before :], *tail], times)


def repeats(said: Sequence[int], times: int) -> bool:
    """Whether `said` ends in one sequence of at most `LONGEST` tokens, `times` in a row, over at least `LEAST * times`
    tokens."""
    for period in range(1, min(LONGEST, len(said) // times) + 1):
        if said[-1] == said[-1 - period]:
            span = times * max(period, LEAST)
            if span <= len(said) and said[len(said) - span : -period] == said[len(said) - span + period :]:
                return True
    return False
