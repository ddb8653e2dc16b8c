"""Which part of a response is the program.

What stands before the last `</think>` is no part of the answer. Then:

1. The last Markdown fence (``` or ~~~) labelled python, py or python3; where none is labelled so, the last one without
   a label. Fences with other labels (text, bash, json) are never programs. A fence that is never closed reaches to the
   end of the response.
2. Of several such fences, those that define a function under test go before those that don't: a program is often
   followed by an example of its use.
3. A response without any fence is the program itself.

Which fence is taken never depends on whether its program is right.
"""

from __future__ import annotations

import re
from collections.abc import Collection

MAX_CHARS = 50_000
"""The longest program that reaches the sandbox, in characters; a response may have four times as many."""

LABELS = ("python", "py", "python3")


class NoProgramError(ValueError):
    """The response holds no program; the message says why."""


def program_text(response: str, names: Collection[str] = ()) -> str:
    """The program in a response by the rule above; `names` are the functions under test.

    Raises:
        NoProgramError: there is none, it is empty, longer than `MAX_CHARS`, or no encodable text.
    """
    if len(response) > 4 * MAX_CHARS:
        raise NoProgramError(f"the response has {len(response)} characters, the limit is {4 * MAX_CHARS}")
    answer = response.rpartition("</think>")[2]
    fences = _fences(answer)
    if not fences:
        return _usable(answer)
    labelled = [code for label, code in fences if label in LABELS]
    found = labelled or [code for label, code in fences if not label]
    if not found:
        raise NoProgramError(f"no Python among the fences: {', '.join(sorted({label for label, _ in fences}))}"[:200])
    defining = [code for code in found if any(defines(code, name) for name in names)]
    return _usable((defining or found)[-1])


def defines(code: str, name: str) -> bool:
    """Whether the text defines a name at its top level, as far as can be told without parsing it."""
    return (
        re.search(rf"^(?:(?:async\s+)?def|class)\s+{re.escape(name)}\b|^{re.escape(name)}\s*=[^=]", code, re.M)
        is not None
    )


def _fences(text: str) -> list[tuple[str, str]]:
    """The label (lower case) and the content of every fence, in order."""
    found: list[tuple[str, list[str]]] = []
    mark = ""
    for line in text.split("\n"):
        line = line.removesuffix("\r")
        fence = _FENCE.fullmatch(line)
        if not mark and fence:
            mark = fence["mark"]
            found.append((fence["label"].lower(), []))
        elif mark and fence and fence["mark"].startswith(mark) and not fence["label"]:
            mark = ""
        elif mark:
            found[-1][1].append(line)
    return [(label, "\n".join(lines)) for label, lines in found]


# Possessive, so that no line takes quadratic time.
_FENCE = re.compile(r"[ \t]*+(?P<mark>`{3,}+|~{3,}+)[ \t]*+(?P<label>[^\s`{]*+)[^`]*+")


def _usable(code: str) -> str:
    if not code.strip():
        raise NoProgramError("the program is empty")
    if len(code) > MAX_CHARS:
        raise NoProgramError(f"the program has {len(code)} characters, the limit is {MAX_CHARS}")
    try:
        code.encode("utf-8")
    except UnicodeEncodeError:
        raise NoProgramError("the program is no text: it holds half a character (a lone surrogate)") from None
    return code.strip("\r\n") + "\n"
