"""The only owner of templates, tokens and stop ids: messages <-> ids.

Untrusted text (task prompts, tool results, responses shown to a judge) is encoded apart from the template's own
pieces, so that no special or added token can come from it. History is never re-rendered: `extend` returns only
the tokens to append, and a template that rewrites earlier turns is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from k2rl.errors import UserError
from k2rl.types import Message

# Private-use characters: no tokenizer has them in a template, and they survive `trim` and `strip`.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
_SENTINEL = re.compile(f"{_OPEN}(\\d+){_CLOSE}")

_K2_SECTION = re.compile(r"<\|tool_calls_section_begin\|>(.*?)(?:<\|tool_calls_section_end\|>|$)", re.S)
_K2_CALL = re.compile(
    r"<\|tool_call_begin\|>\s*(?P<id>(?:functions\.)?(?P<name>[\w.\-]+):\d+)\s*"
    r"<\|tool_call_argument_begin\|>\s*(?P<args>.*?)\s*<\|tool_call_end\|>",
    re.S,
)
_HERMES_CALL = re.compile(r"<tool_call>\s*(?P<body>\{.*?\})\s*</tool_call>", re.S)


@dataclass(frozen=True)
class ToolCall:
    """A call the policy made. `arguments` is None where its JSON does not parse; `raw` is what was written."""

    id: str
    name: str
    arguments: Mapping[str, Any] | None
    raw: str


@dataclass(frozen=True)
class Parsed:
    """A policy turn as a chat message: the text without special tokens and tool calls, and the calls."""

    content: str
    tool_calls: tuple[ToolCall, ...]


class Chat:
    """Templates and tokens of one model.

    Args:
        tokenizer: a transformers tokenizer. Without a chat template the prompt is the messages' text, one
            paragraph each, after the tokenizer's own start tokens; and the start token ends a response, because a
            model of plain texts that writes it has begun another text.
        extra_stop_ids: further stop ids (a generation config's).
    """

    def __init__(self, tokenizer: Any, extra_stop_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # Settings stored in tokenizer.json; the wrapper resets them at its calls, which are not used here.
            self._backend.no_truncation()
            self._backend.no_padding()
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        self.forbidden_ids = frozenset(tokenizer.added_tokens_decoder) | frozenset(tokenizer.all_special_ids)
        self._added_text = {
            str(t): i for i, t in sorted(tokenizer.added_tokens_decoder.items(), key=lambda x: -len(str(x[1])))
        }
        stops = {i for i in (*extra_stop_ids, tokenizer.eos_token_id) if i is not None}
        # What the tokenizer puts before a text (a start token, say), without an end token it may append.
        self._start_ids = tuple(i for i in tokenizer("").input_ids if i not in stops)
        end_of_turn = self._end_of_turn()
        another_text = set() if self.has_template else {i for i in (tokenizer.bos_token_id,) if i is not None}
        self.stop_ids = frozenset(stops | end_of_turn | another_text)
        if not self.stop_ids:
            raise UserError("the tokenizer has no end-of-sequence token: set eos_token in its tokenizer_config.json")
        self.end_id = int(min(end_of_turn) if end_of_turn else tokenizer.eos_token_id or min(self.stop_ids))
        """The stop id that a demonstration ends with."""

    @property
    def pad_id(self) -> int:
        """An id for padding; masked everywhere, so any id will do where the tokenizer has none."""
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else min(self.stop_ids))

    # --- messages -> ids -------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None) -> tuple[int, ...]:
        """The ids of a conversation up to where the policy speaks.

        Raises:
            UserError: the template refuses these messages (a role it does not know, say).
        """
        if not self.has_template:
            text = "\n\n".join(str(m["content"]) for m in messages)
            return (*self._start_ids, *self.encode_untrusted(text))
        return self._encode_rendered(*self._render(messages, tools, generate=True))

    def conversation(self, messages: Sequence[Message], generate: bool) -> tuple[tuple[int, ...], list[slice]]:
        """The ids of a conversation, and where the content of each message is in them. Needs a template.

        `generate` appends what opens the policy's turn.

        Raises:
            UserError: the template refuses these messages, or leaves some of them out.
        """
        rendered, contents = self._render(messages, None, generate)
        ids, places = list[int](), list[slice]()
        for i, piece in enumerate(_SENTINEL.split(rendered)):
            start = len(ids)
            ids += self._encode_trusted(piece) if i % 2 == 0 else self.encode_untrusted(contents[int(piece)])
            if i % 2:
                places.append(slice(start, len(ids)))
        if len(places) != len(messages):
            roles = ", ".join(str(m["role"]) for m in messages)
            raise UserError(f"the chat template does not write each message of a conversation of roles {roles} once")
        return tuple(ids), places

    def token(self, text: str) -> int | None:
        """The id of an added token; None where the tokenizer has no such token."""
        return self._added_text.get(text)

    def extend(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """The ids that follow a finished policy turn: the env's messages and the start of the next policy turn.

        The policy's turn is taken to end with its stop id, which is already in the history.

        Raises:
            UserError: there is no template, or it rewrites earlier turns.
        """
        self.check_turns()
        before = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
        head, _ = self._render(before, None, generate=False)
        full, contents = self._render([*before, *messages], None, generate=True)
        ids = self._encode_rendered(full[len(head) :], contents)
        return (*self._encode_trusted(self._after_stop(head)), *ids)

    def check_turns(self) -> None:
        """Refuse a model whose chat can't go on over several turns.

        Raises:
            UserError: there is no template, or it rewrites earlier turns.
        """
        if not self.has_template:
            raise UserError(
                "a multi-turn environment needs a chat template, and this model's tokenizer has none: "
                "set chat_template in its tokenizer_config.json"
            )
        self.check_history()

    def check_history(self) -> None:
        """Refuse a template that renders earlier turns differently once later ones exist.

        Raises:
            UserError: it does, with the first place where the two renderings part.
        """
        if not self.has_template:
            return
        thought = "<think>\nplan\n</think>\n\nanswer"
        turns = [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": thought},
            {"role": "user", "content": "second"},
            {"role": "assistant", "content": thought},
            {"role": "user", "content": "third"},
        ]
        for n in (2, 4):
            prompt = self._template(turns[: n - 1], None, generate=True)
            turn = self._template(turns[:n], None, generate=False)
            longer = self._template(turns[: n + 1], None, generate=True)
            for shorter_text, longer_text in ((prompt, turn), (turn, longer)):
                if not longer_text.startswith(shorter_text):
                    at = next(
                        (i for i, (a, b) in enumerate(zip(shorter_text, longer_text, strict=False)) if a != b),
                        min(len(shorter_text), len(longer_text)),
                    )
                    raise UserError(
                        "the chat template rewrites earlier turns: "
                        f"{shorter_text[max(0, at - 20) : at + 20]!r} becomes "
                        f"{longer_text[max(0, at - 20) : at + 20]!r} once the conversation goes on; multi-turn "
                        "environments need a template that only appends"
                    )

    def encode_untrusted(self, text: str) -> tuple[int, ...]:
        """The ids of text that must not contain any special or added token, whatever it spells.

        Where the text spells such a token, it is cut inside the spelling and the parts are encoded apart.
        """
        ids = []
        for part in self._cut(text):
            encoded = self._encode(part)
            if self.forbidden_ids.intersection(encoded):
                # A normaliser made the token out of other characters: go character by character, and drop
                # what is a structural token all by itself.
                encoded = [i for ch in part for i in self._encode(ch) if i not in self.forbidden_ids]
            ids += encoded
        return tuple(ids)

    # --- ids -> messages -------------------------------------------------------------------------------

    def decode(self, ids: Sequence[int]) -> str:
        """The text of policy tokens, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def action(self, ids: Sequence[int]) -> str:
        """A policy turn as the environment gets it: plain text, with tool calls as they were written."""
        parsed = self.parse(ids)
        return parsed.content + "".join(call.raw for call in parsed.tool_calls)

    def parse(self, ids: Sequence[int]) -> Parsed:
        """A policy turn's text and tool calls, in Kimi K2's or Hermes' (`<tool_call>{json}</tool_call>`) form."""
        turn = list(ids)
        while turn and turn[-1] in self.stop_ids:
            turn.pop()
        raw = str(self.tokenizer.decode(turn, skip_special_tokens=False))
        calls = [
            ToolCall(call["id"], call["name"], _json_object(call["args"]), call.group(0))
            for section in _K2_SECTION.findall(raw)
            for call in _K2_CALL.finditer(section)
        ]
        for n, match in enumerate(_HERMES_CALL.finditer(raw), start=len(calls)):
            body = _json_object(match["body"]) or {}
            name, args = str(body.get("name", "")), body.get("arguments")
            calls.append(ToolCall(f"{name}:{n}", name, args if isinstance(args, dict) else None, match.group(0)))
        if not calls:
            return Parsed(self.decode(turn), ())
        content = _HERMES_CALL.sub("", _K2_SECTION.sub("", raw))
        for special in self.tokenizer.all_special_tokens:
            content = content.replace(special, "")
        return Parsed(content, tuple(calls))

    # --- pieces ----------------------------------------------------------------------------------------

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, generate: bool
    ) -> tuple[str, list[str]]:
        """The template's text with a numbered sentinel in place of each content, and the contents."""
        contents: list[str] = []

        def mark(value: Any, key: str) -> Any:
            """Every text but roles and types, wherever it is: names and arguments are as untrusted as content."""
            if isinstance(value, Mapping):
                return {k: mark(v, str(k)) for k, v in value.items()}
            if isinstance(value, list | tuple):
                return [mark(v, key) for v in value]
            if not isinstance(value, str) or key in ("role", "type"):
                return value
            contents.append(value)
            return f"{_OPEN}{len(contents) - 1}{_CLOSE}"

        def describe(value: Any) -> Any:
            """Tool schemas: their structure is read by templates, their descriptions are plain text."""
            if isinstance(value, Mapping):
                return {k: mark(v, str(k)) if k == "description" else describe(v) for k, v in value.items()}
            return [describe(v) for v in value] if isinstance(value, list | tuple) else value

        marked = [{**mark(m, ""), "content": mark(str(m["content"]), "content")} for m in messages]
        return self._template(marked, describe(tools) if tools else None, generate), contents

    def _template(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, generate: bool) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(m) for m in messages],
                    tools=[dict(t) for t in tools] if tools else None,
                    tokenize=False,
                    add_generation_prompt=generate,
                )
            )
        except jinja2.exceptions.TemplateError as error:
            roles = ", ".join(str(m["role"]) for m in messages)
            raise UserError(f"the chat template refuses a conversation of roles {roles}: {error}") from None

    def _encode_rendered(self, rendered: str, contents: Sequence[str]) -> tuple[int, ...]:
        ids: list[int] = []
        for i, piece in enumerate(_SENTINEL.split(rendered)):
            ids += self._encode_trusted(piece) if i % 2 == 0 else self.encode_untrusted(contents[int(piece)])
        return tuple(ids)

    def _encode_trusted(self, piece: str) -> tuple[int, ...]:
        return tuple(self._encode(piece)) if piece else ()

    def _encode(self, text: str) -> list[int]:
        """Plain encoding. A fast tokenizer is asked directly: the wrapper around it costs ten times as much."""
        if self._backend is not None:
            return list(self._backend.encode(text, add_special_tokens=False).ids)
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def _cut(self, text: str) -> list[str]:
        """Split the text so that no part spells an added token (longest spellings first)."""
        parts, pending = [], [text]
        while pending:
            part = pending.pop()
            hit = next((t for t in self._added_text if len(t) > 1 and t in part), None)
            if hit is None:
                parts.append(part)
                continue
            at = part.index(hit) + 1
            pending += [part[at:], part[:at]]
        return [p for p in parts if p]

    def _end_of_turn(self) -> set[int]:
        """The special token the template puts right after an assistant's content."""
        if not self.has_template:
            return set()
        messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
        head, _ = self._render(messages, None, generate=False)
        tail = self._encode_trusted(head[head.rindex(_CLOSE) + 1 :].lstrip())
        return {tail[0]} if tail and tail[0] in self.forbidden_ids else set()

    def _after_stop(self, head: str) -> str:
        """What the template writes between the stop token of an assistant's turn and the next turn."""
        tail = head[head.rindex(_CLOSE) + 1 :]
        for stop in sorted((self.tokenizer.convert_ids_to_tokens(i) for i in self.stop_ids), key=len, reverse=True):
            if tail.startswith(stop):
                return tail[len(stop) :]
        return tail


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
