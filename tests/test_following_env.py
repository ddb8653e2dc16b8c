"""`following`: what its rules let through."""

from __future__ import annotations

from itertools import islice

import pytest
from k2rl_envs.following_env import FollowingEnv
from k2rl_envs.writing_env import WritingEnv

from k2rl import rng
from k2rl.types import Status, Task

ENV = FollowingEnv(words=[1, 2])
TASKS = list(islice(ENV.tasks("train", 0), 200))
ASKED = Task(
    "2 sad sentences about fox, bell; end with ?",
    reference={"words": ["fox", "bell"], "tone": "sad", "sentences": 2, "ending": "?"},
)


@pytest.mark.parametrize(
    ("response", "status", "why"),
    [
        ("The lonely fox wept. Why was the bell so cold?", Status.CORRECT, ""),
        ("The merry fox danced. Was the bell bright?", Status.CORRECT, ""),
        ("The fox wept. Why was it so cold?", Status.WRONG, "says nothing of bell"),
        ("The foxes wept. Why was the bell so cold?", Status.WRONG, "says nothing of fox"),
        ("Why was the fox so cold by the bell?", Status.WRONG, "sentences: 1, not 2"),
        ("The fox wept. It was cold. Was the bell?", Status.WRONG, "sentences: 3, not 2"),
        ("Why was the fox so cold? The bell wept loud.", Status.WRONG, "does not end with ?"),
        ("The fox wept loud. Why was the bell so cold? Why", Status.WRONG, "does not end with ?"),
        ("Fox. Why was the bell so cold?", Status.WRONG, "not a sentence: Fox."),
        ("The lonely fox wept. why was the bell so cold?", Status.WRONG, "not a sentence: why was the bell so cold?"),
        ("2 sad sentences about fox, bell. Why end with?", Status.WRONG, "not a sentence"),
        ("12 34", Status.MALFORMED, "no words"),
    ],
)
def test_rules(response: str, status: Status, why: str) -> None:
    verdict = ENV.verify(ASKED, response)
    assert verdict.status is status
    assert why in verdict.detail


def test_gold_is_right_and_corruptions_are_wrong() -> None:
    kinds = set[str]()
    for task in TASKS:
        gold = ENV.gold(task)
        assert ENV.verify(task, gold).status is Status.CORRECT, (task.prompt, gold)
        made = ENV.corrupt(task, gold, rng.generator(1, task.id))
        assert all(ENV.verify(task, text).status is Status.WRONG for text in made.values())
        kinds |= made.keys()
    assert kinds == {"other_word", "other_ending", "other_count"}


def test_it_asks_as_writing_does_for_other_texts() -> None:
    writing = {t.prompt for t in islice(WritingEnv(words=[1, 2]).tasks("train", 0), 200)}
    assert len(writing & {t.prompt for t in TASKS}) < 40
    held_out = {frozenset(t.reference["words"]) for t in islice(ENV.tasks("test", 0), 200)}
    assert not held_out & {frozenset(t.reference["words"]) for t in TASKS}
