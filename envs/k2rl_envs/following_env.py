"""Instruction following that rules decide: prompts as those of `writing`, and of what they ask for what can be checked.

    envs.following: {id: following, args: {words: [1, 2]}}

A response is right if it has all asked words, as many sentences as were asked for (each of three words or more, the
first with a capital) and the asked last mark. The tone is asked for as well, and no rule says what a tone is: that is
left to a critic, in `writing`.

    2 sad sentences about fox, bell; end with ?
    The lonely fox wept. Why was the bell so cold?      right
    The lonely fox wept by the bell?                    1 sentence, not 2
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from k2rl.types import Status, Task, Verdict
from k2rl_envs.writing_env import WORD, WritingEnv, sentences

_SENTENCE = re.compile(r"[A-Z][a-z]*([ ,;]+[A-Za-z]+){2,}[.?!]")


class FollowingEnv(WritingEnv):
    """Verifiable, with verdicts by rule.

    Args:
        words: how many words a text must tell of, 1 or 2, or both in equal shares.

    Test tasks have sets of words that no training task of `writing` or of this has.

    Raises:
        UserError: a number of words that is not allowed.
    """

    open_ended: ClassVar[bool] = False
    stream: ClassVar[str] = "following"

    def __init__(self, words: int | Sequence[int] = 2) -> None:
        super().__init__(words)

    def verify(self, task: Task, response: str) -> Verdict:
        """Correct, or wrong with the first thing that is not as asked; malformed where there is no word at all."""
        if not WORD.search(response):
            return Verdict.malformed("no words")
        flaw = _flaw(task, response)
        return Verdict.of(flaw is None, flaw or "")

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Mapping[str, str]:
        """Those of `writing` that the rules notice."""
        made = super().corrupt(task, response, draw)
        return {kind: text for kind, text in made.items() if self.verify(task, text).status is Status.WRONG}


def _flaw(task: Task, text: str) -> str | None:
    asked, told, said = task.reference, sentences(text), {word.lower() for word in WORD.findall(text)}
    for word in asked["words"]:
        if word not in said:
            return f"says nothing of {word}"
    if len(told) != asked["sentences"]:
        return f"sentences: {len(told)}, not {asked['sentences']}"
    for sentence in told:
        if not _SENTENCE.fullmatch(sentence):
            return f"not a sentence: {sentence}"
    return None if text.rstrip().endswith(asked["ending"]) else f"does not end with {asked['ending']}"
