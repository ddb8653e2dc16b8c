"""What runs in a grader process: math-verify, asked about formulas that are not plain numbers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from k2rl_rewards.math_forms import Same, equal, probe


def math_grader() -> Callable[[str, str | None], bool]:
    """`(gold, answer) -> whether they are the same answer`; without an answer, whether the gold one can be judged."""
    same = math_verify_same()

    def grade(gold: str, answer: str | None) -> bool:
        if answer is None:
            probe(gold, same)
            return True
        return equal(gold, answer, same)

    return grade


def math_verify_same() -> Same:
    """math-verify's comparison of two formulas, without its clock: the caller's deadline is the only one, as an inner
    time-out would be swallowed as "not equal"."""
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    # Only the box: with plain expressions allowed, "not 72" would fall back to the number in it. Units are
    # math_forms' business: math-verify would strip the m of 5m.
    config = [
        LatexExtractionConfig(
            boxed_match_priority=0,
            normalization_config=NormalizationConfig(units=False, malformed_operators=True, nits=True, boxed="all"),
        )
    ]

    @lru_cache(maxsize=4_096)  # The gold answer is the same for all responses of a group.
    def read(text: str) -> Any:
        box = "\\boxed{" + text + "}"
        return parse(box, config, fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None)

    def same(gold: str, answer: str) -> bool:
        wanted, given = read(gold), read(answer)
        return bool(verify(wanted, given, numeric_precision=50, timeout_seconds=None)) or _same_complex(wanted, given)

    return same


def _same_complex(golds: list[Any], answers: list[Any]) -> bool:
    """Whether two constants are equal once `i`, a symbol to math-verify, is the imaginary unit."""
    from sympy import Expr, I, expand_complex, simplify

    if len(golds) != 1 or len(answers) != 1 or not all(isinstance(e, Expr) for e in (*golds, *answers)):
        return False
    pair = [*golds, *answers]
    gold, answer = imaginary = [e.subs({s: I for s in e.free_symbols if s.name == "i"}) for e in pair]
    if not (gold.is_number and answer.is_number) or (imaginary == pair and not gold.has(I) and not answer.has(I)):
        return False
    return bool(simplify(expand_complex(gold - answer)) == 0)
