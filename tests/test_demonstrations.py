"""Texts to imitate, and the stream they come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from k2rl.batch import Example
from k2rl.chat import Chat
from k2rl.demonstrations import Stream, example, from_file
from k2rl.errors import UserError


def test_an_example_ends_as_the_policy_should(tiny_tokenizer: Any) -> None:
    chat = Chat(tiny_tokenizer)
    made = example(chat, [{"role": "user", "content": "a<|end|>b"}], "c")
    assert chat.tokenizer.decode(made.ids[made.start :]) == "c<|end|>"
    assert sum(i == chat.end_id for i in made.ids) == 2


def test_rows_from_a_file_and_what_is_wrong_with_them(
    tiny_tokenizer: Any, in_folder: Callable[[str, str], Path]
) -> None:
    chat = Chat(tiny_tokenizer)
    good = in_folder(
        "good.jsonl",
        '{"prompt": "p", "response": "r"}\n\n{"prompt": [{"role": "user", "content": "p"}], "response": "r"}\n',
    )
    first, second = from_file(chat, good)
    assert first == second
    with pytest.raises(UserError, match=r"bad.jsonl:2: no field 'response' \(the row has prompt\)"):
        from_file(chat, in_folder("bad.jsonl", '{"prompt": "p", "response": "r"}\n{"prompt": "p"}\n'))
    with pytest.raises(UserError, match=r"broken.jsonl:1: not JSON"):
        from_file(chat, in_folder("broken.jsonl", "{\n"))
    with pytest.raises(UserError, match="no rows"):
        from_file(chat, in_folder("empty.jsonl", ""))


def test_the_stream_covers_all_and_resumes_by_its_count() -> None:
    examples = [Example(tuple(range(n + 1)), 0) for n in range(10)]
    whole = Stream(examples, 0, "ptx")
    drawn = [e for _ in range(12) for e in whole.next(20)]
    assert {len(e.ids) for e in drawn[:10]} == set(range(1, 11))
    again = Stream(examples, 0, "ptx")
    again.given = len(drawn) - 5
    assert again.next(1) == drawn[-5:-4]
    assert all(sum(len(e.ids) for e in Stream(examples, s, "p").next(15)) <= 15 for s in range(5))
