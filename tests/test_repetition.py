"""Ending what goes round in circles: the rule, and that neither pauses nor neighbours change where it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from k2rl.protocols import Request
from k2rl.repetition import LONGEST, circling, repeats
from k2rl.samplers.torch_sampler import TorchSampler

REQUEST = Request("r", (5, 6, 7), (1,), 400, 1.0, frozenset({1}), max_repeats=3)


@pytest.mark.parametrize(
    ("said", "times", "expected"),
    [
        ([1, 2, 3, 4] * 3, 3, True),
        ([9, *[1, 2, 3, 4] * 3], 3, True),
        ([1, 2, 3, 4] * 3, 4, False),
        ([*[1, 2, 3, 4] * 2, 1, 2, 3, 5], 3, False),
        ([*[1, 2, 3, 4] * 3, 5], 3, False),
        ([4, *[1, 2, 3, 4] * 3], 3, True),
        ([0] * 12, 3, True),
        ([0] * 11, 3, False),
        ([1, 2] * 6, 3, True),
        ([1, 2] * 5, 3, False),
        (list(range(LONGEST)) * 2, 2, True),
        (list(range(LONGEST + 1)) * 2, 2, False),
        ([1], 2, False),
        ([], 2, False),
    ],
)
def test_one_thing_so_many_times_in_a_row(said: list[int], times: int, expected: bool) -> None:
    assert repeats(said, times) is expected


def test_nothing_is_looked_for_where_nobody_asked() -> None:
    assert not circling(replace(REQUEST, max_repeats=None), [0] * 64)


def ends_at(said: list[int], parts: list[int]) -> int | None:
    """Where a turn is ended if pauses cut it into requests at these positions."""
    for at in range(1, len(said) + 1):
        before = max((p for p in parts if p < at), default=0)
        request = replace(REQUEST, prompt_ids=(5, 6, 7, *said[:before]), first_position=before)
        if circling(request, said[before:at]):
            return at
    return None


def test_pauses_do_not_change_where_it_ends() -> None:
    said = [*range(30, 47), *[1, 2, 3, 4, 5] * 20]
    whole = ends_at(said, [])
    assert whole == 32, "the first eighth token at which 15 of them repeat"
    for parts in ([3], [31], [17, 20, 29], list(range(1, 60))):
        assert ends_at(said, parts) == whole


def test_the_prompt_is_no_repetition() -> None:
    request = replace(REQUEST, prompt_ids=(1, 2, 3, 4) * 9)
    assert not circling(request, [1, 2, 3, 4] * 2)
    assert circling(request, [1, 2, 3, 4] * 4)


@pytest.mark.parametrize("slots", [1, 8])
def test_the_sampler_ends_it_and_keeps_what_was_said(tiny_model: Any, slots: int) -> None:
    """Greedy decoding of a random model goes round in circles soon."""
    prompts = [(20 + i, 30 + i, 40 + i) for i in range(6)]
    wanted = [Request(f"r{i}", p, (i,), 120, 0.0, frozenset({1})) for i, p in enumerate(prompts)]

    def run(requests: list[Request]) -> dict[str, Any]:
        sampler = TorchSampler(tiny_model, 0, slots)
        sampler.submit(requests)
        found: dict[str, Any] = {}
        while len(found) < len(requests):
            found |= {c.request_id: c for c in sampler.poll()}
        return found

    plain, ended = run(wanted), run([replace(r, max_repeats=3) for r in wanted])
    stopped = [c for c in ended.values() if c.finish == "repeat"]
    assert stopped
    for completion in stopped:
        assert len(completion.ids) < 120
        assert len(completion.ids) % 8 == 0
        assert repeats(completion.ids, 3)
        assert completion.ids == plain[completion.request_id].ids[: len(completion.ids)]
        assert len(completion.logprobs) == len(completion.ids)
    assert all(c == plain[c.request_id] for c in ended.values() if c.finish != "repeat")
