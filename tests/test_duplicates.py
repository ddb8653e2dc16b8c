"""Which texts are the same, and that MinHash finds what comparing all pairs finds."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest

from k2rl import rng
from k2rl.duplicates import Twin, _hash, _jaccard, normalised, twins


def test_exact_and_normalised() -> None:
    texts = ["What is x-1?", "what  is\tX-1? ", "What is x+1?", "What is x-1?", "Ｗhat is x-1?"]
    assert twins(texts) == [Twin(1, 0, "normalised"), Twin(3, 0, "exact"), Twin(4, 0, "normalised")]
    assert normalised("  Straße\u00a0ﬁn ") == "strasse fin"


def test_what_stands_beside_must_be_equal_too() -> None:
    assert twins(["a", "a", "a"], ["t1", "t2", "t1"]) == [Twin(2, 0, "exact")]
    long = "one two three four five six seven eight nine ten"
    assert not twins([long, long + " eleven"], ["t1", "t2"], near=0.5)


def test_near_ones_have_the_same_numbers() -> None:
    base = "Tom has 3 red apples and 5 green pears in the big old basket near his door"
    reworded, other_numbers = base.replace("big", "huge"), base.replace("5", "6")
    found = twins([base, reworded, other_numbers], near=0.5)
    assert [(t.at, t.of, t.how) for t in found] == [(1, 0, "near")]
    assert 0.5 <= found[0].similarity < 1
    assert not twins([base, reworded], near=0.9)


def test_known_texts_are_compared_with_but_not_among_themselves() -> None:
    assert twins(["a", "a", "b", "a", "c", "c"], known=2) == [Twin(3, 0, "exact"), Twin(5, 4, "exact")]


def test_odd_texts() -> None:
    assert twins(["", "", "!?", "\ud800"], near=0.5) == [Twin(1, 0, "exact")]


def test_minhash_finds_what_all_pairs_find() -> None:
    """Texts of 40 words, each with one to six words replaced: every pair above 0.7 is found."""
    words = [f"{a}{b}" for a in "bcdfghjklm" for b in ("ala", "elo", "imo", "ona", "uru")]
    draw = rng.generator("test")
    texts: list[str] = []
    for _ in range(20):
        base = [words[int(i)] for i in draw.integers(0, len(words), 40)]
        texts.append(" ".join(base))
        for changes in range(1, 7):
            changed = list(base)
            for at in draw.choice(40, changes, replace=False):
                changed[int(at)] = words[int(draw.integers(0, len(words)))]
            texts.append(" ".join(changed))

    def shingles(text: str) -> frozenset[int]:
        split = text.split()
        return frozenset(_hash(" ".join(split[i : i + 3])) for i in range(38))

    sets = [shingles(t) for t in texts]
    near_some = {b for a, b in combinations(range(len(texts)), 2) if _jaccard(sets[a], sets[b]) >= 0.7}
    found = {t.at for t in twins(texts, near=0.7)}
    assert found <= near_some
    # A text whose only neighbours were dropped themselves stays, so only those near a kept one must go.
    kept = [n for n in range(len(texts)) if n not in found]
    assert not [b for b in kept for a in kept if a < b and _jaccard(sets[a], sets[b]) >= 0.7]


def test_real_problems(shared_data: Path) -> None:
    lines = (shared_data / "gsm8k/train.jsonl").read_text("utf-8").splitlines()[:2500]
    questions = [json.loads(line)["question"] for line in lines]
    assert not twins(questions)
    assert [t.at for t in twins([*questions, questions[7].upper()])] == [2500]
    assert twins([*questions, questions[7] + " Think!"], near=0.8)[-1] == Twin(
        2500,
        7,
        "near",
        pytest.approx(0.95, abs=0.05),  # type: ignore[arg-type]
    )
