"""The contract of the story reward: what is a story, and what only looks like one to a program."""

from __future__ import annotations

import time

import pytest
from k2rl_rewards.story_words import StoryWords, is_real, vocabulary, without_sentence, words_of

from k2rl.types import Verdict

STORY = (
    "Lily liked the kite very much. She ran to the hill, and the kite went up high. On the hill there was a little "
    'frog. "Do you want to play with me?" asked Lily. They played together until it was dark.'
)


def verdict(story: str, words: tuple[str, ...] = ("kite", "frog"), name: str = "Lily") -> Verdict:
    return StoryWords()(story, {"words": list(words), "name": name})


@pytest.mark.parametrize(
    "story",
    [
        STORY,
        f"\n {STORY}\n",
        STORY.replace("dark.", 'dark!"'),
        STORY.replace("kite", "kites").replace("a little frog", "the frog's house"),
        STORY.replace('"', "”").replace("asked Lily", "asked Lily’s mom"),
        STORY.replace("very much", "vry much"),
        STORY.replace(". On", ".\n\nOn"),
    ],
)
def test_stories(story: str) -> None:
    assert verdict(story) == Verdict.of(True)


@pytest.mark.parametrize(
    ("story", "detail"),
    [
        (STORY.replace("Lily", "Tom"), "no word of Lily"),
        (STORY.replace("very much. She ran to the hill, and the kite went up high", "x"), "words, not 35 or more"),
        (STORY.replace(". She", " and she").replace(". They", " and they"), "3 sentences, not 4 or more"),
        (STORY[:-1], "the last sentence is not ended"),
        (STORY[0].lower() + STORY[1:], "does not begin with a capital"),
        (STORY + " It was late. They ran. They slept. They ate. It was day. All was well.", "words per sentence"),
        (STORY.replace(". On", " and then when they all looked around on"), "a sentence of 26 words"),
        (STORY + " She ran to the hill and was happy there.", "'she ran to the' occurs twice"),
        (STORY.replace("hill", "hyll").replace("kite went", "kite wnt"), "not in the list of words: hyll, wnt, hyll"),
    ],
)
def test_a_broken_rule_is_named_and_costs_more_than_half(story: str, detail: str) -> None:
    found = verdict(story)
    assert detail in found.detail
    assert found.score == pytest.approx(0.4 ** (1 + found.detail.count(";")))


def test_each_missing_word_costs_its_share() -> None:
    assert verdict(STORY, ("kite", "frog", "hat")).score == pytest.approx(2 / 3)
    assert verdict(STORY, ("hat", "bus")).score == 0.0
    assert verdict(STORY, ("kite", "hat")).detail == "no sentence of its own for hat"
    assert verdict(STORY, ("kit", "frog")).score == 0.5, "a part of a word is not the word"


@pytest.mark.parametrize(
    "trick",
    [
        "kite frog",
        "Kite. Frog. Kite. Frog.",
        "Lily had a kite and a frog.",
        "kite frog " * 30,
        "Lily saw a kite. Lily saw a frog. " * 6,
        STORY + " kite frog 1.0",
        " ".join([STORY] * 2),
        " ".join([STORY.replace("kite", w).replace("frog", w) for w in ("hat", "bus", "kite", "frog", "cat")]),
    ],
)
def test_tricks_are_not_paid(trick: str) -> None:
    score = verdict(trick).score
    assert score is not None
    assert score < 0.5


def test_a_list_of_the_words_is_one_sentence() -> None:
    listed = STORY.replace("the kite very", "the kite, the frog, the hat and the bus very")
    assert verdict(listed, ("kite", "frog", "hat", "bus")).score == 0.75
    assert without_sentence(["a", "b"], [["a", "b", "c", "c"]]) == ["b"]


def test_sentences_are_given_so_that_most_words_have_one() -> None:
    both, one = words_of("the kite and the frog"), words_of("the kite was here")
    assert without_sentence(["kite", "frog"], [both, one]) == []
    assert without_sentence(["frog", "kite"], [one, both]) == []
    assert without_sentence(["kite", "frog"], [both, words_of("a kite")]) == ["frog"], "too short for a sentence"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "...",
        "7",
        f"{STORY} 1",
        f"{STORY} <b>",
        f"{STORY} \ud800",
        f"{STORY}\0",
        "a" * 1_000_000,
        "a " * 1_000,
        "A b. " * 190,
    ],
)
def test_what_is_no_story_at_all_is_malformed_at_once(text: str) -> None:
    start = time.perf_counter()
    found = verdict(text)
    assert (found.status.value, found.score) == ("malformed", 0.0)
    assert found.detail
    assert time.perf_counter() - start < 0.5


def test_the_list_of_words() -> None:
    assert 1_000 < len(vocabulary()) < 5_000
    assert {"the", "lily", "kite", "didn't"} < vocabulary()
    assert is_real("kites")
    assert is_real("kite's")
    assert not is_real("kit's")
