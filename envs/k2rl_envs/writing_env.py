"""Short texts of asked words, tone and form: open-ended writing at the level of a very small model.

    envs.writing: {id: writing, args: {words: [1, 2]}}

A task and a response:

    2 sad sentences about fox, bell; end with ?
    The lonely fox wept. Why was the bell so cold?

Nothing here says how good a text is. Responses are compared with each other by the critic, and all that is known for
certain is which of a text and its corruption (`corrupt`) is worse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from k2rl import rng
from k2rl.env import SingleTurnEnv
from k2rl.errors import UserError
from k2rl.types import Split, Task, Verdict
from k2rl_envs import short_texts
from k2rl_envs.arguments import style_shares
from k2rl_envs.short_texts import ENDINGS, NOUNS, TONES, Tone

COUNTS = (1, 2)
STYLES = ("full", "flat", "loose", "free")
WORD = re.compile(r"[A-Za-z]+")
_SENTENCE = re.compile(r"[^.!?]+[.!?]+")


class WritingEnv(SingleTurnEnv):
    """Open-ended: its verdicts are pending, and the critic compares.

    Args:
        words: how many words a text must tell of, 1 or 2, or both in equal shares.
        styles: how the gold responses are written: style -> share of `full` (all that was asked, the default), `flat`
            (without the tone), `loose` (a word is missing), `free` (another number of sentences, another ending). For
            demonstrations: people don't always give what was asked.

    Test tasks have sets of words that no training task has.

    Raises:
        UserError: a number of words or a style that is not allowed.
    """

    budget: ClassVar[int] = 64
    open_ended: ClassVar[bool] = True
    rubrics: ClassVar[tuple[str, ...]] = ("writing",)
    stream: ClassVar[str] = "writing"
    """Whose draws its tasks are: another name, other tasks."""

    def __init__(self, words: int | Sequence[int] = 2, styles: Mapping[str, float] | None = None) -> None:
        self.words = (words,) if isinstance(words, int) else tuple(words)
        if not self.words or any(isinstance(n, bool) or n not in (1, 2) for n in self.words):
            raise UserError(f"words is {words!r}: allowed are 1, 2 and [1, 2]")
        self.shares = style_shares(styles, STYLES)

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        draw = rng.generator(self.stream, *self.words, split, seed)
        while True:
            nouns = [NOUNS[int(i)] for i in draw.permutation(len(NOUNS))[: int(draw.choice(self.words))]]
            tone, count = str(draw.choice(list(TONES))), int(draw.choice(COUNTS))
            ending = str(draw.choice(ENDINGS))
            if rng.in_test_split("writing", *sorted(nouns)) == (split == "test"):
                what = "sentence" if count == 1 else "sentences"
                prompt = f"{count} {tone} {what} about {', '.join(nouns)}; end with {ending}"
                asked = {"words": nouns, "tone": tone, "sentences": count, "ending": ending}
                yield Task(prompt, reference=asked, tags=(self.stream, tone))

    def verify(self, task: Task, response: str) -> Verdict:
        """Pending; malformed where there is no word at all."""
        return Verdict.pending("compared within its group") if WORD.search(response) else Verdict.malformed("no words")

    def gold(self, task: Task) -> str:
        """A text by a pattern, in a style drawn by the prompt."""
        draw = rng.generator("writing-gold", str(task.prompt))
        asked = task.reference
        nouns, tone, count, ending = list(asked["words"]), asked["tone"], asked["sentences"], asked["ending"]
        style = str(draw.choice(STYLES, p=self.shares))
        if style == "loose":
            nouns.pop(int(draw.integers(len(nouns))))
        if style == "free":
            count = sum(COUNTS) - count
            ending = str(draw.choice([e for e in ENDINGS if e != ending]))
        return short_texts.write(nouns, short_texts.FLAT if style == "flat" else TONES[tone], count, ending, draw)

    def sample_gold(self, task: Task, draw: np.random.Generator) -> str:
        """All that was asked, whatever the `styles`."""
        asked = task.reference
        tone = TONES[asked["tone"]]
        return short_texts.write(asked["words"], tone, asked["sentences"], asked["ending"], draw)

    def well_formed(self, response: str) -> bool:
        """Whether it begins with a capital and ends with a mark."""
        return response[:1].isupper() and response.endswith(ENDINGS)

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Mapping[str, str]:
        """`other_word`, `other_tone`, `other_ending`, `other_count`, `shuffled`: each where the response has what it
        spoils."""
        kinds: dict[str, Callable[[Task, str, np.random.Generator], str | None]] = {
            "other_word": _other_word,
            "other_tone": _other_tone,
            "other_ending": _other_ending,
            "other_count": _other_count,
            "shuffled": _shuffled,
        }
        made = {kind: spoil(task, response, draw) for kind, spoil in kinds.items()}
        return {kind: text for kind, text in made.items() if text is not None}


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with its marks; what follows the last mark is none."""
    marked = text[: max(text.rfind(mark) for mark in ENDINGS) + 1]  # Or a long rest is looked through again and again.
    return [s.strip() for s in _SENTENCE.findall(marked)]


def _other_word(task: Task, text: str, draw: np.random.Generator) -> str | None:
    """An asked word, everywhere in the text, becomes one that was not asked."""
    asked = set(task.reference["words"])
    there = sorted(asked & set(WORD.findall(text)))
    if not there:
        return None
    gone = str(draw.choice(there))
    other = str(draw.choice([n for n in NOUNS if n not in asked and n not in text]))
    return re.sub(rf"\b{gone}\b", other, text)


def _other_tone(task: Task, text: str, draw: np.random.Generator) -> str | None:
    """Every word of the asked tone becomes one of another tone, or of none."""
    own: Tone = TONES[task.reference["tone"]]
    others = [tone for name, tone in TONES.items() if name != task.reference["tone"]] + [short_texts.FLAT]
    other = others[int(draw.integers(len(others)))]

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        for kind, replacements in ((own.adjectives, other.adjectives), (own.verbs, other.verbs)):
            if word.lower() in kind:
                new = str(draw.choice(replacements))
                return new.capitalize() if word[0].isupper() else new
        return word

    swapped = WORD.sub(swap, text)
    return None if swapped == text else swapped


def _other_ending(task: Task, text: str, draw: np.random.Generator) -> str | None:
    """The asked last mark becomes another one."""
    ending = task.reference["ending"]
    if not text.endswith(ending) or text[-2:-1] in ENDINGS:
        return None
    return text[:-1] + str(draw.choice([e for e in ENDINGS if e != ending]))


def _other_count(task: Task, text: str, draw: np.random.Generator) -> str | None:
    """A right number of sentences becomes wrong: two become one, or one falls apart.

    As often longer as shorter: joined with an "and" or with nothing, fallen apart with or without the first word.
    """
    parts = sentences(text)
    if len(parts) != task.reference["sentences"] or " ".join(parts) != text:
        return None
    words, apart, longer = parts[0].split(), draw.random() < 0.4, draw.random() < 0.5
    if len(parts) == 1 or apart:
        if len(words) < 4:
            return None
        if not longer:
            words = [words[1].capitalize(), *words[2:]]
        return " ".join([f"{' '.join(words[:2])}.", " ".join(words[2:]).capitalize(), *parts[1:]])
    joined = f"{parts[1][0].lower()}{parts[1][1:]}"
    return " ".join([parts[0].rstrip(".!?"), *(["and"] if longer else []), joined, *parts[2:]])


def _shuffled(task: Task, text: str, draw: np.random.Generator) -> str | None:
    """The words of a sentence, its marks left in place, in another order."""
    parts = sentences(text)
    if " ".join(parts) != text:
        return None
    long = [i for i, part in enumerate(parts) if len(part.split()) >= 4]
    if not long:
        return None
    at = int(draw.choice(long))
    body, mark = parts[at].rstrip(".!?"), parts[at][len(parts[at].rstrip(".!?")) :]
    words = body.split()
    order = draw.permutation(len(words))
    mixed = " ".join(words[int(i)].lower() for i in order)
    shuffled = mixed[0].upper() + mixed[1:] + mark
    return None if shuffled == parts[at] else " ".join([*parts[:at], shuffled, *parts[at + 1 :]])
