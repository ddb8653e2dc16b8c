"""Rollouts to look at: a sample of whole groups over a run, with the text of each token and, where the critic ranked
them, the tournament. What a page holds is bounded, whatever the run has."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from k2rl.report.reading import Row, RunFiles
from k2rl.types import Segment

Decode = Callable[[Sequence[int]], str]

ITERATIONS = 24
"""So many of a run's are looked into: the first, the last, and evenly between."""
TEXT = 20_000
"""Characters of a text that are shown: half of its beginning and half of its end."""


def sample(run: RunFiles, size: int, decode: Decode | None) -> list[Row]:
    """Groups of rollouts for the page, as many as `size` bytes of JSON hold: environments and iterations in turn, and
    in each the groups first that have better and worse responses.

    Args:
        decode: token ids to text; without it no token has a text of its own.
    """
    queues = [
        iter(sorted(own, key=_even))
        for iteration in spread(run.iterations, ITERATIONS)
        for own in group_rows(run, iteration).values()
    ]
    found, used = list[Row](), 0
    for group in (g for turn in zip_longest(*queues) for g in turn if g is not None):
        shown = shown_group(group, decode)
        used += len(json.dumps(shown))
        if used > size and found:
            break
        found.append(shown)
    return sorted(found, key=lambda g: (g["iteration"], g["env"]))


def spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most so many of them, evenly, with both ends."""
    if len(numbers) <= most:
        return list(numbers)
    return [numbers[round(n * (len(numbers) - 1) / (most - 1))] for n in range(most)]


def status_of(rollout: Row) -> str:
    """What a person wants to filter by: how the verdict reads, or that the response was cut."""
    if rollout["end"] in ("budget", "repeat"):
        return f"cut ({rollout['end']})"
    return str(rollout["verdicts"][-1]["status"]) if rollout["verdicts"] else "no verdict"


def group_rows(run: RunFiles, iteration: int) -> dict[str, list[Row]]:
    """An iteration's groups by environment."""
    critiques = defaultdict[tuple[str, str], list[Row]](list)
    for critique in run.kept("critiques", iteration):
        critiques[critique["env"], critique["task_id"]].append(critique)
    groups = defaultdict[tuple[str, str, int], list[Row]](list)
    seen = defaultdict[tuple[str, str, int], int](int)
    for rollout in run.kept("rollouts", iteration):
        key = (rollout["task"]["env"], rollout["task_id"], rollout["k"])
        # A task may have been given twice: its second k of a kind begins another group.
        groups[(*key[:2], seen[key])].append(rollout)
        seen[key] += 1
    found = defaultdict[str, list[Row]](list)
    for (env, task, copy), rollouts in groups.items():
        own = critiques[env, task][copy : copy + 1]
        found[env].append(
            {"iteration": iteration, "env": env, "rollouts": rollouts, "critique": own[0] if own else None}
        )
    return found


def _even(group: Row) -> bool:
    """Whether there is no better and no worse response in it."""
    return len({rollout.get("reward") for rollout in group["rollouts"]}) == 1


def shown_group(group: Row, decode: Decode | None) -> Row:
    """A group as the page has it."""
    first = group["rollouts"][0]
    prompt = first["task"]["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    critique = group["critique"]
    return {
        "iteration": group["iteration"],
        "env": group["env"],
        "task": first["task_id"],
        "tags": first["task"]["tags"],
        "prompt": [{"role": str(m["role"]), "content": _bounded(_words(m.get("content")))} for m in messages],
        "answer": _bounded(_words(first["task"]["answer"])),
        "rollouts": [_shown(rollout, decode) for rollout in group["rollouts"]],
        "critique": critique
        and {
            "criteria": critique["criteria"],
            "matches": [[m["a"], m["b"], _short(m["a_first"]), _short(m["b_first"])] for m in critique["matches"]],
            "scores": {k: _short(score) for k, score in critique["scores"].items()},
        },
    }


def _shown(rollout: Row, decode: Decode | None) -> Row:
    verdict = rollout["verdicts"][-1] if rollout["verdicts"] else None
    own = [s for s in rollout["segments"] if s["source"] == "policy"]
    return {
        "k": rollout["k"],
        "end": rollout["end"],
        "status": status_of(rollout),
        "score": verdict and _short(verdict["score"]),
        "detail": _bounded(verdict["detail"]) if verdict else "",
        "reward": _short(rollout.get("reward")),
        "advantage": _short(rollout.get("advantage")),
        "budget": rollout.get("budget"),
        "tokens": sum(len(s["ids"]) for s in own),
        "temperature": _short(own[0]["temperature"]) if own else None,
        "version": own[0]["version"] if own else None,
        "turns": list(_turns(rollout, decode)),
    }


def _turns(rollout: Row, decode: Decode | None) -> Iterator[Row]:
    """What was said, in order: of the policy with pieces of text and the log-prob of each, where tokens can be read."""
    said = iter(rollout["text"])
    for raw in rollout["segments"]:
        segment = Segment.from_json(raw)
        text = decode(segment.ids) if decode else None
        if segment.source == "env":
            yield {"source": "env", "text": _bounded(text if text is not None else f"{len(segment.ids)} tokens")}
        elif decode is None or text is None or len(text) > TEXT:
            yield {"source": "policy", "text": _bounded(next(said, text or ""))}
        else:
            next(said, None)
            pieces = list(pieces_of(segment.ids, decode))
            found, at = [], 0
            for count, piece in pieces:
                found.append([piece, _short(sum(segment.logprobs[at : at + count]))])
                at += count
            yield {"source": "policy", "pieces": found}


def pieces_of(ids: Sequence[int], decode: Decode) -> Iterator[tuple[int, str]]:
    """The text of token after token: how many tokens, and what they add to the text. Tokens that are part of a letter
    only go with those that end it."""
    before: Sequence[int] = ()
    start = 0
    for end in range(1, len(ids) + 1):
        # Read after what came before: by itself the first token of a text may lose its space.
        own = ids[start:end]
        known, text = decode(before), decode([*before, *own])
        if text.endswith("\ufffd") and end < len(ids):
            continue
        yield end - start, text.removeprefix(known)
        before, start = own, end


def decoder(run: RunFiles) -> Decode | None:
    """Of the run's own tokenizer; None where it is not here any more."""
    from transformers import AutoTokenizer

    from k2rl.models import place
    from k2rl.recipe import ModelConfig

    for path in (run.folder / "model", place(ModelConfig(path=run.recipe["model"]["path"]))):
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError):
            continue
        return lambda ids: str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    return None


def _words(content: Any) -> str:
    return content if isinstance(content, str) else "" if content is None else json.dumps(content, ensure_ascii=False)


def _bounded(text: str) -> str:
    if len(text) <= TEXT:
        return text
    return f"{text[: TEXT // 2]}\n… {len(text) - TEXT:,} characters are not shown …\n{text[-TEXT // 2 :]}"


def _short(number: float | None) -> float | None:
    return None if number is None else round(number, 3)
