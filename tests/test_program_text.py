"""The contract of extraction: which part of a response is the program."""

from __future__ import annotations

import contextlib
import time

import pytest
from k2rl_rewards.program_text import MAX_CHARS, NoProgramError, program_text

F = "def f(x):\n    return x"
G = "def g(x):\n    return -x"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        pytest.param(F, F, id="no fence: all of it"),
        pytest.param(f"# 1+1=2\n\n{F}\n\n", f"# 1+1=2\n\n{F}", id="no fence: comments are part of it"),
        pytest.param("    return x\n", "    return x", id="no fence: the first line keeps its indentation"),
        pytest.param(f"Sure!\n```python\n{F}\n```\nIt works.", F, id="a fence"),
        pytest.param(f"```py\n{F}\n```", F, id="py"),
        pytest.param(f"```Python3\n{F}\n```", F, id="any case"),
        pytest.param(f"```\n{F}\n```", F, id="no label"),
        pytest.param(f"~~~python\n{F}\n~~~", F, id="tildes"),
        pytest.param(f"``` python title=x\n{F}\n```", F, id="more after the label"),
        pytest.param(f"  ```python\n{F}\n  ```", F, id="an indented fence"),
        pytest.param(f"```python\r\n{F}\r\n```".replace("x):\n", "x):\r\n"), F, id="lines that end in CR LF"),
        pytest.param(f"```python\n{G}\n```\nno:\n```python\n{F}\n```", F, id="the last of several"),
        pytest.param(f"```python\n{F}\n```\nprints\n```\n5\n```", F, id="a label goes before none"),
        pytest.param(f"```\n{F}\n```\n```text\n5\n```", F, id="other labels are no programs"),
        pytest.param(f"```python\n{F}\n```\nUse:\n```python\nprint(f(2))\n```", F, id="the one that defines f"),
        pytest.param(f"```python\n{F}  # 1\n```\n```python\n{F}  # 2\n```", f"{F}  # 2", id="the last that defines f"),
        pytest.param("```python\nf = lambda x: x\n```\n```python\nf(2)\n```", "f = lambda x: x", id="f as a lambda"),
        pytest.param(f"Here:\n```python\n{F}", F, id="a fence that is never closed"),
        pytest.param(f"```python\n{G}\n```\nBetter:\n```python\n{F}", F, id="a last one that is never closed"),
        pytest.param(f"````python\n{F}\n```\n````", f"{F}\n```", id="a longer fence is closed by a long one"),
        pytest.param(f"<think>```python\n{G}\n```</think>\n{F}", F, id="what is thought is not the answer"),
        pytest.param(f"Use `f` like ```f(1)```:\n{F}", f"Use `f` like ```f(1)```:\n{F}", id="inline code is no fence"),
    ],
)
def test_the_program_in_a_response(response: str, program: str) -> None:
    assert program_text(response, ["f"]) == program + "\n"


@pytest.mark.parametrize(
    ("response", "why"),
    [
        ("", "empty"),
        (" \n\t\n", "empty"),
        ("```python\n```", "empty"),
        ("```python\n\n```\n", "empty"),
        ("```bash\nls\n```", "no Python among the fences: bash"),
        ("<think>def f(x): return x", None),
        (f"{F}</think>", "empty"),
        ("x = '\ud800'", "lone surrogate"),
        ("#" * (MAX_CHARS + 1), f"{MAX_CHARS + 1} characters, the limit is {MAX_CHARS}"),
        ("```python\nx\n```\n" + "a" * 4 * MAX_CHARS, f"the limit is {4 * MAX_CHARS}"),
    ],
)
def test_what_holds_no_program(response: str, why: str | None) -> None:
    if why is None:
        assert program_text(response) == response + "\n"
        return
    with pytest.raises(NoProgramError, match=why):
        program_text(response)


@pytest.mark.parametrize(
    "piece", ["```", "`", "```a`", "~", "``` ` ", " ", "\n```python\n", "<think>", "def f", "\t```\n"]
)
def test_hostile_text_takes_no_time(piece: str) -> None:
    text = piece * (4 * MAX_CHARS // len(piece))
    started = time.perf_counter()
    with contextlib.suppress(NoProgramError):
        assert len(program_text(text, ["f"])) <= MAX_CHARS + 1
    assert time.perf_counter() - started < 2.0


def test_which_program_is_taken_depends_on_definitions_alone() -> None:
    """Candidates in several fences are one answer: the last."""
    many = "\n".join(f"```python\ndef f(x):\n    return {n}\n```" for n in range(9))
    assert program_text(many, ["f"]) == "def f(x):\n    return 8\n"
    assert program_text(many, ["g"]) == "def f(x):\n    return 8\n"
    assert program_text(many.replace("f(x)", "f2(x)"), ["f"]) == "def f2(x):\n    return 8\n"
