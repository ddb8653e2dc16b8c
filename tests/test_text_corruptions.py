"""Corruptions of any text: what each changes, what it keeps, where it does not apply."""

from __future__ import annotations

import json
import re
import statistics
from collections import defaultdict
from pathlib import Path

import pytest
from k2rl_envs import text_corruptions
from k2rl_envs.text_corruptions import CORRUPTIONS, corruptions

from k2rl import rng

STORY = (
    "The harbour of Eskil was built in 1904. It is the largest port of the island, and ships can enter it by day and "
    "by night. Before the war, 37 boats were moored here!\n\n"
    "Fishing is not allowed in the basin. The old lighthouse will guide you when the fog comes; its lamp isn't bright, "
    "but it never fails. Would you like to know more about the town?"
)
BARE = re.compile(r"[\w']+")


def one(kind: str, text: str, seed: int = 0) -> str | None:
    return corruptions(text, rng.generator("test", seed)).get(kind)


def changes(kind: str, text: str) -> set[str]:
    """What a text with one claim may become."""
    return {str(one(kind, text, seed)) for seed in range(20)}


def test_each_applies_to_prose_and_is_a_matter_of_its_draw() -> None:
    first = corruptions(STORY, rng.generator("test", 0))
    assert list(first) == list(CORRUPTIONS)
    assert first == corruptions(STORY, rng.generator("test", 0))
    assert first != corruptions(STORY, rng.generator("test", 1))
    for worse in first.values():
        assert worse != STORY
        assert abs(len(worse) - len(STORY)) <= 0.05 * len(STORY)
        assert worse.endswith("?") or worse == first["shuffled_sentences"]


@pytest.mark.parametrize("seed", range(10))
def test_no_sentence_stays_where_it_was(seed: int) -> None:
    text = "One is red. Two is blue.\n\nThree is green. Four is grey."
    worse = one("shuffled_sentences", text, seed)
    assert worse is not None
    before, after = re.split(r"\s+(?=[A-Z])", text), re.split(r"\s+(?=[A-Z])", worse)
    assert sorted(before) == sorted(after)
    assert not any(a == b for a, b in zip(before, after, strict=True))
    assert re.sub(r"\S+( \S+)*", "x", worse) == re.sub(r"\S+( \S+)*", "x", text)  # paragraphs as they were


@pytest.mark.parametrize(
    "text", ["", "One. Two.", "- eggs\n- milk\n- bread and butter", "1. eggs\n2. milk\n3. bread", "Yes. Yes. Yes."]
)
def test_what_can_not_be_shuffled(text: str) -> None:
    assert one("shuffled_sentences", text) is None


@pytest.mark.parametrize(
    ("text", "worse"),
    [
        ("The sky is blue.", {"The sky is not blue."}),
        ("The sky is not blue.", {"The sky is blue."}),
        ("Swans aren't black.", {"Swans are black."}),
        ("You can't go.", {"You can go."}),
        ("You cannot go.", {"You can go."}),
        ("It won’t rain.", {"It will rain."}),
        ("Always knock twice.", {"Never knock twice."}),
        ("It was better.", {"It was worse.", "It was not better."}),
        ("Go home.", {"None"}),
        ("Is it so?", {"None"}),
    ],
)
def test_a_claim_is_contradicted(text: str, worse: set[str]) -> None:
    found = changes("contradicted", text)
    assert found <= worse
    assert found & worse


def test_a_claim_is_not_contradicted_twice() -> None:
    text = " ".join(["It is possible and easy, and it was never better."] * 8)
    for seed in range(20):
        before, after = text.split(". "), str(one("contradicted", text, seed)).split(". ")
        differing = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
        assert len(differing) == 2  # a quarter of them
        for a, b in differing:
            gone = [w for w in BARE.findall(a) if w not in BARE.findall(b)]
            new = [w for w in BARE.findall(b) if w not in BARE.findall(a)]
            assert (gone, new) == ([], ["not"]) or (len(gone), len(new)) == (1, 1)


def test_numbers_change_but_for_those_of_a_list() -> None:
    assert all(
        re.fullmatch(r"It weighs [124-9]50,5 kg\.", worse) for worse in changes("wrong_numbers", "It weighs 350,5 kg.")
    )
    assert one("wrong_numbers", "1. Knock.\n 2) Wait.\n**3.** Enter room B12, x2.") is None
    worse = one("wrong_numbers", "1. Knock 4 times.")
    assert worse is not None
    assert re.fullmatch(r"1\. Knock [^4] times\.", worse)


@pytest.mark.parametrize("seed", range(10))
def test_words_are_misplaced_in_one_span(seed: int) -> None:
    worse = one("misplaced_words", STORY, seed)
    assert worse is not None
    before, after = BARE.findall(STORY), BARE.findall(worse)
    assert {w.lower() for w in after} <= {w.lower() for w in before}
    changed = [n for n, (a, b) in enumerate(zip(before, after, strict=True)) if a.lower() != b.lower()]
    assert len(before) / 8 <= len(changed) <= len(before) / 4
    assert changed[-1] - changed[0] <= 0.3 * len(before)
    assert BARE.sub("", worse) == BARE.sub("", STORY)


def test_the_first_half_is_said_again() -> None:
    worse = one("repeated_half", STORY)
    assert worse is not None
    again = worse.index("The harbour", 1)
    assert worse[:again] == STORY[:again]
    assert 0.4 < again / len(STORY) < 0.6
    assert STORY[again - 2].isalpha()  # in the middle of a sentence
    assert STORY.startswith(worse[again:-1])
    assert one("repeated_half", "One two three four five six seven eight nine ten eleven twelve. " + "." * 200) is None


def test_little_text_is_left_alone() -> None:
    for text in ("", " \n", "Hello there", "?!", "\ud800 \x00"):
        assert corruptions(text, rng.generator("test")) == {}


@pytest.mark.parametrize(
    "text",
    [
        " " * 60_000 + "x",
        "\n" * 60_000 + "x",
        "1." * 30_000,
        "a. " * 20_000,
        "is not " * 9_000,
        "1. 7\n" * 9_000,
        "'a" * 30_000,
    ],
)
def test_strange_text_costs_no_more_than_its_length(text: str) -> None:
    for kind, worse in corruptions(text, rng.generator("test")).items():
        assert abs(len(worse) - len(text)) <= 0.3 * len(text), kind


def test_on_real_answers_length_says_nothing(shared_data: Path) -> None:
    deltas = defaultdict(list)
    for line in (shared_data / "biggen/tasks_with_rubrics.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        text = row["reference_answer"].strip()
        for kind, worse in corruptions(text, rng.generator("test", row["id"])).items():
            deltas[kind].append((len(worse) - len(text)) / len(text))
    assert {kind: len(found) > 250 for kind, found in deltas.items()} == dict.fromkeys(
        text_corruptions.CORRUPTIONS, True
    )
    for found in deltas.values():
        longer, shorter = (sum(sign * d > 0 for d in found) / len(found) for sign in (1, -1))
        assert abs(longer - shorter) < 0.25
        assert abs(statistics.mean(found)) < 0.005
