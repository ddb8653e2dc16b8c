"""What `writing`'s texts are worth, told from outside: rules that no part of a run trains on, judges by or sees.

    python benchmarks/writing_oracle.py MODEL [--tasks N] [--seed S]

The score of a text is the mean of three parts, each in [0, 1]:

* words: the share of the asked words that it tells of.
* tone: the share of its tone words that are of the asked tone; 0 where it has none.
* form: half for the asked number of sentences, half for the asked last mark.

The environment's corruptions spoil just these three, so a judge taught by corruptions is asked for what it was taught.
What else becomes of the texts stand apart, in no score:

* fluent: the share of sentences that are one of the demonstrations' patterns. Some corruptions spoil it, too.
* variety: the share of words of four letters or more that the text has not used before. No corruption changes it.
* shapes: how many different texts there are, the asked words left out, per response. No corruption changes it; it falls
  where a policy says the same to everything.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from k2rl_envs.short_texts import FLAT, NOUNS, PATTERNS, PLACES, TONES
from k2rl_envs.writing_env import WritingEnv

from k2rl import rng
from k2rl.eval_policy import bootstrap
from k2rl.models import load_policy
from k2rl.protocols import Request
from k2rl.recipe import ModelConfig
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.types import Task

TONE_WORDS = {
    "glad": {"happy", "bright", "sunny", "merry", "warm", "laughed", "danced", "sang"},
    "sad": {"lonely", "gray", "cold", "bitter", "empty", "cried", "wept", "sighed"},
    "calm": {"quiet", "gentle", "still", "soft", "slow", "rested", "slept", "dreamed"},
}
PARTS = ("words", "tone", "form")
_ADJECTIVES = [word for tone in (*TONES.values(), FLAT) for word in tone.adjectives]
_VERBS = [word for tone in (*TONES.values(), FLAT) for word in tone.verbs]
_SLOTS = {"a": _ADJECTIVES, "b": _ADJECTIVES, "v": _VERBS, "p": PLACES, "x": NOUNS, "y": NOUNS}
_KNOWN = re.compile(
    "|".join(
        re.sub(r"\\{(\w)\\}", lambda slot: f"(?:{'|'.join(_SLOTS[slot[1]])})", re.escape(pattern))
        for patterns in PATTERNS.values()
        for pattern in patterns
    )
)


def score(asked: Mapping[str, Any], text: str) -> dict[str, float]:
    """The parts, their mean as `score`, `fluent` and `variety`."""
    said = re.findall(r"[a-z]+", text.lower())
    marks = re.findall(r"[.!?]+", text)
    toned = [word for word in said if any(word in words for words in TONE_WORDS.values())]
    long = [word for word in said if len(word) >= 4]
    parts = {
        "words": sum(word in said for word in asked["words"]) / len(asked["words"]),
        "tone": sum(word in TONE_WORDS[asked["tone"]] for word in toned) / len(toned) if toned else 0.0,
        "form": (len(marks) == asked["sentences"]) / 2 + text.rstrip().endswith(asked["ending"]) / 2,
    }
    sentences = [s.strip() for s in re.findall(r"[^.!?]+[.!?]*", text) if s.strip()]
    fluent = sum(_KNOWN.fullmatch(s) is not None for s in sentences) / len(sentences) if sentences else 0.0
    variety = len(set(long)) / len(long) if long else 0.0
    return parts | {"score": sum(parts.values()) / len(parts), "fluent": fluent, "variety": variety}


def shapes(asked: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> float:
    """How many different texts there are per response, whatever words were asked for."""
    left = {re.sub(rf"\b({'|'.join(a['words'])})\b", "_", text) for a, text in zip(asked, texts, strict=True)}
    return len(left) / len(texts)


def texts(model: str, tasks: Sequence[Task], temperature: float, seed: int) -> list[tuple[str, int, bool]]:
    """One response of a model to each task: its text, its tokens, and whether it ended by itself."""
    policy = load_policy(ModelConfig(path=model))
    chat, sampler = policy.chat, TorchSampler(policy.model, policy.chat.pad_id)
    keys = [rng.key("oracle", seed, task.id) for task in tasks]
    sampler.submit(
        [
            Request(str(i), chat.prompt(task.messages), (keys[i],), WritingEnv.budget, temperature, chat.stop_ids)
            for i, task in enumerate(tasks)
        ]
    )
    found: dict[int, tuple[str, int, bool]] = {}
    while len(found) < len(tasks):
        for done in sampler.poll():
            found[int(done.request_id)] = (chat.action(done.ids), len(done.ids), done.finish == "stop")
    sampler.close()
    return [found[i] for i in range(len(tasks))]


def evaluate(model: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Mean scores of a model's responses to held-out tasks, sampled (T = 1) and greedy, with 95 % intervals."""
    tasks = list(islice(WritingEnv(words=[1, 2]).tasks("test", 0), count))
    report: dict[str, Any] = {"n": count}
    for how, temperature in {"sampled": 1.0, "greedy": 0.0}.items():
        made = texts(model, tasks, temperature, seed)
        scored = [score(task.reference, text) for task, (text, _, _) in zip(tasks, made, strict=True)]
        columns = {key: [s[key] for s in scored] for key in scored[0]}
        report[how] = {key: sum(values) / count for key, values in columns.items()} | {
            "shapes": shapes([t.reference for t in tasks], [text for text, _, _ in made]),
            "ci95": {key: bootstrap(values) for key, values in columns.items()},
            "tokens": sum(n for _, n, _ in made) / count,
            "ended": sum(ended for _, _, ended in made) / count,
        }
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a transformers folder, or nano")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(evaluate(args.model, args.tasks, args.seed), indent=1))
