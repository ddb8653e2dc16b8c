"""Texts to imitate: demonstrations by the environments' `gold`, or rows of a JSONL file. For PTX and SFT."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from k2rl import rng
from k2rl.batch import Example
from k2rl.chat import Chat
from k2rl.env import Env
from k2rl.errors import UserError, users_code
from k2rl.types import Message, Task


def example(chat: Chat, messages: Sequence[Message], response: str) -> Example:
    """A prompt and the response to learn, ended as the policy should end it."""
    prompt = chat.prompt(messages)
    return Example((*prompt, *chat.encode_untrusted(response), chat.end_id), len(prompt))


def from_gold(chat: Chat, envs: Mapping[str, Env], pools: Mapping[str, Iterable[Task]]) -> list[Example]:
    """One demonstration per task whose environment knows a one-turn gold response.

    Raises:
        UserError: there is none at all, or `gold` raises.
    """
    found = []
    for name, env in envs.items():
        for task in pools[name]:
            with users_code(f"gold() of env {name}"):
                response = env.gold(task)
            if isinstance(response, str):
                found.append(example(chat, task.messages, response))
    if not found:
        raise UserError(f"the environments {', '.join(envs)} have no gold responses to learn from")
    return found


def from_file(chat: Chat, path: Path) -> list[Example]:
    """Rows of `{"prompt": text or messages, "response": text}`.

    Raises:
        UserError: no such file, or a row that is not such an object: file, line and field named.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: ptx.data is `gold` or a JSONL of prompt and response")
    found = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON: {error}") from None
        for key in ("prompt", "response"):
            if not isinstance(row, dict) or key not in row:
                has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise UserError(f"{path}:{number}: no field {key!r} (the row has {has})")
        messages = row["prompt"]
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        if not isinstance(row["response"], str) or not _are_messages(messages):
            raise UserError(f"{path}:{number}: prompt is text or messages with role and content, response is text")
        found.append(example(chat, messages, row["response"]))
    if not found:
        raise UserError(f"{path}: no rows")
    return found


def _are_messages(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    )


class Stream:
    """Endless examples in an order keyed by (seed, purpose, pass); its state is how many were given."""

    def __init__(self, examples: Sequence[Example], seed: int, purpose: str) -> None:
        self.examples, self.seed, self.purpose = examples, seed, purpose
        self.given = 0
        self._order: tuple[int, list[int]] = (-1, [])

    def next(self, tokens: int) -> list[Example]:
        """The next examples, up to `tokens` ids in all, but at least one."""
        taken: list[Example] = []
        used = 0
        while True:
            candidate = self._at(self.given)
            if taken and used + len(candidate.ids) > tokens:
                return taken
            taken.append(candidate)
            used += len(candidate.ids)
            self.given += 1

    def _at(self, position: int) -> Example:
        number, at = divmod(position, len(self.examples))
        if self._order[0] != number:
            draw = rng.generator(self.seed, self.purpose, number)
            self._order = (number, draw.permutation(len(self.examples)).tolist())
        return self.examples[self._order[1][at]]
