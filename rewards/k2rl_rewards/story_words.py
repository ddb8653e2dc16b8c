"""Whether a short story tells of the given words and is a story: sentences of real words, without loops.

A text can hold the words and be no story ("cat ball rain", one sentence said again and again), so that each of the
rules below is a way to cheat when it is left out. All hold, and the story is `correct`:

    words      each given word (or its plural or possessive) has a sentence of its own, of 4 words or more
    name       the child of the beginning is named
    length     35 words or more, in 4 sentences or more
    sentences  each begins with a capital, they have 6 words or more on average and 25 at most, and the last is ended
    loops      no 4 words in a row occur twice
    spelling   19 of 20 words are of the list beside this file, or plurals or possessives of it

Else the score is the share of the given words that have their sentence, and each other rule that is broken leaves 0.4
of it: no text that breaks one is paid half. Whether the story came to its end within its budget is not seen here: the
framework knows, and cuts its reward.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import cast

from k2rl.types import Verdict

MAX_CHARS = 2000
MOST = 120
FEWEST = 35
"""Words of a story."""
SENTENCES = 4
LONGEST = 25
AVERAGE = 6
"""Words of a sentence."""
SHORTEST = 4
"""Words of a sentence that a given word can have as its own."""
LOOP = 4
REAL = 0.95
BROKEN = 0.4
"""What a broken rule leaves of the score."""

_STRANGE = re.compile(r"[^A-Za-z\s.,!?;:'\"-]")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
# A sentence ends where a capital follows: `"Look!" said Tom.` is one.
_BETWEEN = re.compile(r"(?<=[.!?])\"?\s+(?=\"?[A-Z])")
_PLAIN = str.maketrans("“”‘’", "\"\"''")


class StoryWords:
    """The reward of a short story; the reference is `{"words": ["cat", "ball"], "name": "Lily"}`.

    Malformed: more than 120 words, other characters than letters and the usual marks, or no words at all.
    """

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        if len(response) > MAX_CHARS:
            return Verdict.malformed(f"{len(response)} characters, a story has at most {MAX_CHARS}")
        text = response.translate(_PLAIN).strip()
        if strange := _STRANGE.search(text):
            return Verdict.malformed(f"{strange.group()!r} has no place in a story")
        sentences = [(s, words_of(s)) for s in _BETWEEN.split(text)]
        words = [w for _, said in sentences for w in said]
        if not words or len(words) > MOST:
            return Verdict.malformed(f"{len(words)} words, a story has {FEWEST} to {MOST}")
        given = cast(Sequence[str], reference["words"])
        missing = without_sentence(given, [said for _, said in sentences])
        rules = (
            _name(words, cast(str, reference["name"])),
            _length(words, len(sentences)),
            _sentences(sentences),
            _loops(words),
            _spelling(words),
        )
        problems = [problem for problem in rules if problem]
        score = (1 - len(missing) / len(given)) * BROKEN ** len(problems)
        if missing:
            problems.append(f"no sentence of its own for {', '.join(missing)}")
        return Verdict.of(score, "; ".join(problems))


def words_of(text: str) -> list[str]:
    """The words, in small letters."""
    return _WORD.findall(text.lower())


def without_sentence(given: Sequence[str], sentences: Sequence[Sequence[str]]) -> list[str]:
    """The given words left over when as many as possible have a sentence of their own that holds them."""
    owner: dict[int, str] = {}

    def place(word: str, tried: set[int]) -> bool:
        """Find a sentence for the word, if need be by moving the word that has it (augmenting paths)."""
        for n, said in enumerate(sentences):
            if n not in tried and len(said) >= SHORTEST and forms(word).intersection(said):
                tried.add(n)
                if n not in owner or place(owner[n], tried):
                    owner[n] = word
                    return True
        return False

    return [word for word in given if not place(word, set())]


def forms(word: str) -> set[str]:
    """A word, its plain plural and its possessive."""
    return {word, f"{word}s", f"{word}es", f"{word}'s"}


@cache
def vocabulary() -> frozenset[str]:
    """The words a story may use."""
    return frozenset((Path(__file__).parent / "story_vocabulary.txt").read_text(encoding="ascii").split())


def is_real(word: str) -> bool:
    return any(form in vocabulary() for form in (word, word.removesuffix("'s"), word.removesuffix("s")))


def _name(words: Sequence[str], name: str) -> str:
    return "" if forms(name.lower()).intersection(words) else f"no word of {name}"


def _length(words: Sequence[str], sentences: int) -> str:
    if len(words) < FEWEST:
        return f"{len(words)} words, not {FEWEST} or more"
    return f"{sentences} sentences, not {SENTENCES} or more" if sentences < SENTENCES else ""


def _sentences(sentences: Sequence[tuple[str, Sequence[str]]]) -> str:
    if not re.search(r"[.!?]\"?$", sentences[-1][0]):
        return "the last sentence is not ended"
    if not re.match(r"\"?[A-Z]", sentences[0][0]):
        return "the first sentence does not begin with a capital"
    lengths = [len(said) for _, said in sentences]
    if sum(lengths) < AVERAGE * len(lengths):
        return f"{sum(lengths) / len(lengths):.1f} words per sentence, not {AVERAGE} or more"
    return f"a sentence of {max(lengths)} words, not {LONGEST} at most" if max(lengths) > LONGEST else ""


def _loops(words: Sequence[str]) -> str:
    seen: set[tuple[str, ...]] = set()
    for n in range(len(words) - LOOP + 1):
        part = tuple(words[n : n + LOOP])
        if part in seen:
            return f"{' '.join(part)!r} occurs twice"
        seen.add(part)
    return ""


def _spelling(words: Sequence[str]) -> str:
    strange = [w for w in words if not is_real(w)]
    return f"not in the list of words: {', '.join(strange[:5])}" if len(strange) > (1 - REAL) * len(words) else ""
