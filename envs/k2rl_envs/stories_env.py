"""Short stories that must tell of given words: a task for a base model that writes stories, without any chat.

    envs.stories: {id: stories, args: {words: 2}}

The prompt is the beginning of a story in the manner of TinyStories, and the response goes on from there:

    One day, Lily found a kite. Then she saw a frog.

What makes the response a story, and that each word needs a sentence of its own, is told in
`k2rl_rewards.story_words`. The story must also end by itself within its budget, before the model is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from k2rl_rewards.story_words import StoryWords

from k2rl import rng
from k2rl.env import SingleTurnEnv
from k2rl.errors import UserError
from k2rl.types import Split, Task, Verdict
from k2rl_envs.generated import words as spelled

NOUNS = spelled(
    "apple bag ball basket bear bird blanket boat book box bunny bus cake candy car cat chair cookie dog doll dragon "
    "dress drum duck fish flower frog hat horse jar key kite leaf lion monkey moon mouse owl pillow plane puppy rabbit "
    "rock rope shirt shoe spoon stick swing table toy train tree truck turtle"
)
UNSEEN = NOUNS[2::5]
"""Nouns of no training task, unless `unseen` asks for them."""
CHILDREN = {
    "Lily": "she",
    "Mia": "she",
    "Sue": "she",
    "Anna": "she",
    "Tim": "he",
    "Tom": "he",
    "Ben": "he",
    "Max": "he",
}
BEGINNINGS = ("One day, {name} found {noun}.", "Then {pronoun} saw {noun}.", "Now {pronoun} had {noun} too.")
"""The sentence of the prompt that names the first, second and third word."""
GOLD = (
    ("{name} liked the {0} very much.", "{name} was very happy with the {0}.", "The {0} made {name} laugh out loud."),
    ("{pronoun} wanted to play with the {1} in the garden.", "{pronoun} ran home and showed the {1} to mom."),
    ("It was fun to have the {2} there as well.", "They all thought that the {2} was so pretty!"),
    (
        "Soon a friend came by and they played a game together.",
        "A little friend came along and asked if they could share.",
    ),
    (
        "They ran up the hill and looked at the clouds in the sky.",
        "They sat under a big tree and told each other stories.",
    ),
    ("When it was dark, they said goodbye.", "They laughed until the sun went down."),
    ("From then on, they were the best of friends.", "At night, {name} went to bed with a big smile."),
)
"""Ways to say each sentence of a gold story; those of words a task does not have are left out."""


class StoriesEnv(SingleTurnEnv):
    """Stories scored by `StoryWords`.

    Args:
        words: how many words must appear, 1 to 3.
        unseen: tasks of the nouns that no training task has otherwise, in both splits: what was learned about words
            nobody trained on.

    Test tasks have sets of nouns that no training task has, whatever the child's name and the order.

    Raises:
        UserError: a number of words that is not 1, 2 or 3.
    """

    budget: ClassVar[int] = 320

    def __init__(self, words: int = 2, unseen: bool = False) -> None:
        if words not in range(1, len(BEGINNINGS) + 1):
            raise UserError(f"words is {words!r}: allowed are 1 to {len(BEGINNINGS)}")
        self.words, self.unseen = words, unseen
        self.nouns = UNSEEN if unseen else tuple(n for n in NOUNS if n not in UNSEEN)
        self.reward = StoryWords()

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        draw = rng.generator("stories", self.words, self.unseen, split, seed)
        while True:
            nouns = [self.nouns[int(i)] for i in draw.permutation(len(self.nouns))[: self.words]]
            name = list(CHILDREN)[int(draw.integers(len(CHILDREN)))]
            if rng.in_test_split("stories", *sorted(nouns)) == (split == "test"):
                yield Task(beginning(name, nouns), reference={"words": nouns, "name": name}, tags=("stories",))

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str:
        """A plain story by a pattern. Nothing to learn style from, but proof that the rules can be kept."""
        name, nouns = str(task.reference["name"]), list(task.reference["words"])
        draw = rng.generator("stories-gold", str(task.prompt))
        patterns = (*GOLD[: len(nouns)], *GOLD[len(BEGINNINGS) :])
        said = [ways[int(draw.integers(len(ways)))] for ways in patterns]
        return " ".join(s.format(*nouns, name=name, pronoun=CHILDREN[name].capitalize()) for s in said)


def beginning(name: str, nouns: Iterable[str]) -> str:
    """The prompt: a sentence for each noun."""
    sentences = zip(BEGINNINGS, nouns, strict=False)
    return " ".join(s.format(name=name, pronoun=CHILDREN[name], noun=with_article(n)) for s, n in sentences)


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
