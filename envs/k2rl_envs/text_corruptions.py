"""Ways to make any English text worse without knowing what it is about, for pairs of which the better one is known.

Each keeps the layout where it can, and nearly the length, so that neither "the longer one" nor "the shorter one" is a
good guess; what does not apply to a text is left out. A sound text is worse for it; one that was noise need not be.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise

import numpy as np

_WORD = re.compile(r"(?<!\w)[^\W\d_]+(?:['’][^\W\d_]+)?(?!\w)")
_GAP = re.compile(r"((?<!\s)[^\S\n]*\n\s*|(?<=[^\s\d][.!?])\s+|(?<=[.!?][\"')\]])\s+)")
"""What lies between sentences: a line's end, or white space after a full stop that is no `1.`."""
_MARKS = ".!?…\"')]*"
_ITEM = re.compile(r"[-*•]\s|\d+[.):]")
_LIST_NUMBER = re.compile(r"^[^\w\n]*(\d+)[.):]", re.M)
_NUMBER = re.compile(r"(?<![\w.,-])[0-9]+(?:[.,][0-9]+)*(?!\w)")
_AFFIRMED = re.compile(r"\b(?:is|are|was|were|can|could|will|would|should|must)\b(?= (?!not\b)[a-z])")
_DENIED = re.compile(
    r"\b(?:(?P<plain>is|are|was|were|could|would|should|must)(?: not|n['’]t)"
    r"|(?P<can>cannot|can not|can['’]t)|will not|won['’]t)\b"
)
_OPPOSITES = (
    "more less|most least|always never|many few|high low|higher lower|highest lowest|large small|larger smaller|"
    "increase decrease|increases decreases|increased decreased|increasing decreasing|before after|"
    "best worst|better worse|good bad|true false|possible impossible|easy hard|easier harder|early late|"
    "earlier later|above below|positive negative|correct incorrect|safe unsafe|near far|strong weak|stronger weaker|"
    "fast slow|faster slower|same different|success failure|allow prevent|allows prevents|accept reject|"
    "include exclude|includes excludes|including excluding|gain lose|agree disagree|likely unlikely|legal illegal|"
    "important unimportant|necessary unnecessary|able unable|everyone nobody|everything nothing|north south|"
    "east west|hot cold|day night|morning evening|rich poor|win lose|old new|begin end|begins ends"
)
_OPPOSITE = {a: b for pair in _OPPOSITES.split("|") for a, b in (pair.split(), pair.split()[::-1])}

_SHARE = 0.25
"""Of the sentences with a claim or a number that could be changed, as many are, at least one; of the words, as many."""
_TRIES = 16
_LEAST_WORDS = 12

Edit = tuple[int, int, str]
"""Where a piece of the text begins and ends, and what takes its place."""


def corruptions(text: str, draw: np.random.Generator) -> dict[str, str]:
    """Worse versions of a text by what was done to it; empty for a text too short for any."""
    made = {name: corrupt(text, draw) for name, corrupt in CORRUPTIONS.items()}
    return {name: worse for name, worse in made.items() if worse is not None and worse.split() != text.split()}


def shuffled_sentences(text: str, draw: np.random.Generator) -> str | None:
    """Every sentence in another one's place, the line breaks where they were. Not for fewer than three sentences, nor
    for a mere list, whose items may come in any order."""
    pieces = _GAP.split(text.strip())
    sentences = pieces[::2]
    if len(sentences) < 3 or all(_ITEM.match(sentence) for sentence in sentences):
        return None
    order = [int(i) for i in draw.permutation(len(sentences))]
    for place, taken in zip(order, (*order[1:], order[0]), strict=True):  # one cycle through all: none stays
        pieces[2 * place] = sentences[taken]
    return "".join(pieces)


def contradicted(text: str, draw: np.random.Generator) -> str | None:
    """Claims turned into their opposite: a word by its antonym, a negation put in or taken out."""
    return _edited(text, _contradictions(text), draw)


def _contradictions(text: str) -> list[Edit]:
    edits = [
        (*m.span(), _cased(_OPPOSITE[m[0].lower()], m[0])) for m in _WORD.finditer(text) if m[0].lower() in _OPPOSITE
    ]
    edits += [(m.end(), m.end(), " not") for m in _AFFIRMED.finditer(text)]
    edits += [(*m.span(), m["plain"] or ("can" if m["can"] else "will")) for m in _DENIED.finditer(text)]
    return edits


def wrong_numbers(text: str, draw: np.random.Generator) -> str | None:
    """Numbers with another first digit. The numbers of a list stay."""
    of_lists = {m.start(1) for m in _LIST_NUMBER.finditer(text)}
    edits = []
    for m in _NUMBER.finditer(text):
        if m.start() not in of_lists:
            other = str(draw.choice([d for d in "123456789" if d != m[0][0]]))
            edits.append((m.start(), m.start() + 1, other))
    return _edited(text, edits, draw)


def misplaced_words(text: str, draw: np.random.Generator) -> str | None:
    """A span of words replaced by words from elsewhere in the text; marks and layout stay."""
    words = list(_WORD.finditer(text))
    n = int(_SHARE * len(words))
    if len(words) < _LEAST_WORDS:
        return None
    start = int(draw.integers(len(words) - n + 1))
    span, elsewhere = words[start : start + n], [*words[:start], *words[start + n :]]
    drawn = []
    for _ in range(_TRIES):
        taken = [elsewhere[int(i)][0] for i in draw.permutation(len(elsewhere))[:n]]
        if sum(old[0].lower() != new.lower() for old, new in zip(span, taken, strict=True)) >= n / 2:
            drawn.append([(*m.span(), _cased(new, m[0])) for m, new in zip(span, taken, strict=True)])
    return _least_changed(text, drawn)


def repeated_half(text: str, draw: np.random.Generator) -> str | None:
    """The second half gives way to the first, said again from the middle of a sentence."""
    text = text.strip()
    words = list(_WORD.finditer(text))
    # Where two words have nothing but a space between them, and the halves are halves.
    cuts = [a.end() for a, b in pairwise(words) if text[a.end() : b.start()] == " "]
    cuts = [at for at in cuts if 0.4 < at / len(text) < 0.6]
    if len(words) < _LEAST_WORDS or not cuts:
        return None
    cut = min(cuts, key=lambda at: abs(at - len(text) / 2))
    tail = text[len(text.rstrip(_MARKS)) :]
    body = f"{text[:cut]} {text[:cut]} {text[:cut]}"
    ends = [m.end() for m in _WORD.finditer(body)]
    return body[: min(ends, key=lambda at: abs(at + len(tail) - len(text)))] + tail


CORRUPTIONS: dict[str, Callable[[str, np.random.Generator], str | None]] = {
    "shuffled_sentences": shuffled_sentences,
    "contradicted": contradicted,
    "wrong_numbers": wrong_numbers,
    "misplaced_words": misplaced_words,
    "repeated_half": repeated_half,
}


def _edited(text: str, edits: list[Edit], draw: np.random.Generator) -> str | None:
    """The text with one edit in a share of the sentences that have some: two in one might cancel out."""
    gaps = [m.end() for m in _GAP.finditer(text)]
    by_sentence: dict[int, list[Edit]] = {}
    for edit in edits:
        by_sentence.setdefault(bisect_right(gaps, edit[0]), []).append(edit)
    sentences = list(by_sentence.values())
    n = max(1, int(_SHARE * len(sentences)))
    drawn = []
    for _ in range(_TRIES if sentences else 0):
        chosen = [sentences[int(i)] for i in draw.permutation(len(sentences))[:n]]
        drawn.append([found[int(draw.integers(len(found)))] for found in chosen])
    return _least_changed(text, drawn)


def _least_changed(text: str, drawn: list[list[Edit]]) -> str | None:
    """The text with those edits that change its length least; None where there are none to choose from."""
    if not drawn:
        return None
    pieces, position = [], 0
    for start, end, new in sorted(min(drawn, key=lambda edits: abs(sum(len(n) - (e - s) for s, e, n in edits)))):
        pieces += [text[position:start], new]
        position = end
    return "".join([*pieces, text[position:]])


def _cased(word: str, like: str) -> str:
    return word[:1].upper() + word[1:] if like[:1].isupper() else word
