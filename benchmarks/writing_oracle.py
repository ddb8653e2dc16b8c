"""What `writing`'s texts are worth, told from outside: rules that no part of k2rl trains on, judges by or sees.

    python benchmarks/writing_oracle.py MODEL [--tasks N] [--seed S]

The score of a text is the mean of three parts, each in [0, 1]:

* words: the share of the asked words that it tells of.
* tone: the share of its tone words that are of the asked tone; 0 where it has none.
* form: half for the asked number of sentences, half for the asked last mark.

Beside it, in no score, stands `variety`, the share of its words of four letters or more that it has not used before. No
corruption of the environment changes it on purpose, so it shows what else becomes of texts whose judge was taught by
corruptions.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

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


def score(asked: Mapping[str, Any], text: str) -> dict[str, float]:
    """The parts, their mean as `score`, and `variety`."""
    said = re.findall(r"[a-z]+", text.lower())
    marks = re.findall(r"[.!?]+", text)
    toned = [word for word in said if any(word in words for words in TONE_WORDS.values())]
    long = [word for word in said if len(word) >= 4]
    parts = {
        "words": sum(word in said for word in asked["words"]) / len(asked["words"]),
        "tone": sum(word in TONE_WORDS[asked["tone"]] for word in toned) / len(toned) if toned else 0.0,
        "form": (len(marks) == asked["sentences"]) / 2 + text.rstrip().endswith(asked["ending"]) / 2,
    }
    variety = len(set(long)) / len(long) if long else 0.0
    return parts | {"score": sum(parts.values()) / len(parts), "variety": variety}


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
