"""reasoning_gym's own scorers, in a child process: what they may be given, and how entries get there."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from k2rl_rewards.grader import GraderPool

# An answer that is never right. A scorer that accepts it (`game_of_life_halting` compares the truth values of
# two strings) judges nothing: the gold answer's own text is then the only right one.
NONSENSE = "qqqqqqqq"

# The gold answer among words that don't belong there. A scorer that accepts one of these searches the answer for
# what it wants; then an answer of more words than the gold one is wrong, or listing candidates would pay.
_WORDS = " ".join([NONSENSE] * 10)
PADDED = (f"{_WORDS} {{0}} {_WORDS}", f"{_WORDS}\n{{0}}\n{_WORDS}", f"{{0}} {_WORDS}", f"{{0}}\n{_WORDS}", "{0} {0}")

# Data sets whose scorer evaluates the answer as Python (`eval`) or with sympy (which does as well).
EVALUATING = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
_FUNCTION = re.compile(r"a?(?:sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|Abs|erf")
_KEYWORD = re.compile(r"\b(?:and|or|not|if|else|for|in|is|lambda|await|yield|import)\b")
_CALL = re.compile(r"([^\W\d]\w*|[\])}\"'])\s*\(")


def unsafe(answer: str) -> str:
    """Why an answer must not be evaluated, or "": it calls something other than a function of mathematics.

    Names, literals and operators alone can run no code; a string inside a call could hold some for sympy.
    """
    if any(mark in answer for mark in "\\#@"):
        return "the answer holds a character that no expression needs"
    if "(" in answer and any(quote in answer for quote in "\"'"):
        return "the answer has a string beside parentheses"
    if found := _KEYWORD.search(answer):
        return f"the answer holds {found.group()!r}"
    calls = [name for name in _CALL.findall(answer) if not _FUNCTION.fullmatch(name)]
    return f"the answer calls {calls[0]!r}" if calls else ""


def pack(value: Any) -> Any:
    """A data set's entry as JSON from which `unpack` makes an equal one: scorers tell tuples from lists."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [pack(v) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) and not k.startswith("$") for k in value):
        return {str(k): pack(v) for k, v in value.items()}
    if isinstance(value, Mapping):
        return {"$dict": [[pack(k), pack(v)] for k, v in value.items()]}
    if isinstance(value, tuple | set | frozenset):
        items = list(value) if isinstance(value, tuple) else sorted(value, key=repr)
        return {f"${type(value).__name__}": [pack(v) for v in items]}
    if hasattr(value, "tolist"):  # NumPy
        return pack(value.tolist())
    raise TypeError(f"can't store a {type(value).__name__} in a task: {value!r}")


def unpack(value: Any) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (mark, items), *_ = value.items()
        if mark == "$dict":
            return {unpack(k): unpack(v) for k, v in items}
        if mark in _MAKERS:
            return _MAKERS[mark](unpack(v) for v in items)
    return {k: unpack(v) for k, v in value.items()}


_MAKERS: dict[str, Callable[[Iterable[Any]], Any]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}


def gym_scorer() -> Callable[[str, Mapping[str, Any], Any, str], float]:
    """Runs in the child: `(data set, config, packed entry, answer) -> score`."""
    import reasoning_gym

    @lru_cache(maxsize=16)
    def made(name: str, config: str) -> Any:
        return reasoning_gym.create_dataset(name, seed=0, size=2, **json.loads(config))

    def score(name: str, config: Mapping[str, Any], packed: Any, answer: str) -> float:
        data_set, entry = made(name, json.dumps(config, sort_keys=True)), unpack(packed)
        gold = entry["answer"]

        def accepts(candidate: str) -> bool:
            with contextlib.suppress(Exception):
                return bool(data_set.score_answer(candidate, entry) == 1.0)
            return False

        if name == "coin_flip":
            return float(_same_probability(answer, gold))
        if gold is not None and accepts(NONSENSE):
            return float(answer == gold)
        wordy = gold is not None and len(answer.split()) > len(gold.split())
        if wordy and any(accepts(form.format(gold)) for form in PADDED):
            return 0.0
        return float(data_set.score_answer(answer, entry))

    return score


def _same_probability(answer: str, gold: str) -> bool:
    """coin_flip's own scorer pays in full for any beginning of the right digits ("0" for 0.27), and for 0 where the
    probability is small."""
    if not re.fullmatch(r"\d{1,15}/[1-9]\d{0,14}|\d{0,15}\.?\d{1,15}(?:e-\d\d?)?", answer, re.ASCII):
        return False
    return math.isclose(Fraction(answer), Fraction(gold), rel_tol=1e-3)


scorer = GraderPool("k2rl_envs.reasoning_gym_scorer:gym_scorer")
