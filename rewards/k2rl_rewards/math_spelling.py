"""One spelling for what is written in many ways, and the exact value of plain numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache


def plain_number(text: str) -> Fraction | None:
    """The value of an integer, decimal, fraction or mixed number (also `\\frac{a}{b}`); None for all else."""
    if len(text) > 1_000:
        return None
    text = re.sub(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}", r" \1/\2", text).strip()
    found = _PLAIN.fullmatch(text)
    if found is None:
        return None
    whole, over, part, under = found.group("whole", "over", "part", "under")
    if (over and Fraction(over) == 0) or (under and int(under) == 0):
        return None
    value = Fraction(whole) / (Fraction(over) if over else 1) + (Fraction(int(part), int(under)) if part else 0)
    return -value if found.group("sign") == "-" else value


@lru_cache(maxsize=1_000)
def canonical(text: str) -> str:
    """An answer without what changes nothing: delimiters, faces of type, thousands commas, other names of signs."""
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\cfrac", "\\frac")
    text = _DOLLARS.sub(r"\\$", text) if len(_DOLLARS.findall(text)) % 2 else _DOLLARS.sub("", text)
    text = text.replace("**", "^").replace("{,}", ",").translate(_UNICODE)
    for _ in range(3):
        text = WRAPPER.sub(r" \1 ", text)
    text = re.sub(r"(?<!\\)\\[()!]|\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)(?![A-Za-z])", "", text)
    text = re.sub(r"(?<=\d)\\[, ](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])", " ", text)
    for pattern, spelling in _REWRITES:
        text = pattern.sub(spelling, text)
    text = _REPEATING.sub(_repeating, text)
    text = " ".join(text.split()).strip(" ,;").removesuffix(".").strip()
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def exact(text: str) -> str:
    """Decimals as fractions: a parser would compare them as floats."""
    return re.sub(r"\d*\.\d+", lambda m: "\\frac{{{}}}{{{}}}".format(*Fraction(m[0]).as_integer_ratio()), text)


def squeezed(text: str) -> str:
    """Without spaces, save those between digits."""
    return re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", text)


def _repeating(found: re.Match[str]) -> str:
    whole, fixed, cycle = found["whole"] or "0", found["fixed"], found["cycle"]
    value = Fraction(f"{whole}.{fixed}0") + Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(fixed))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def _mixed(found: re.Match[str]) -> str:
    whole, part, under = (int(n) for n in found.groups())
    return f"\\frac{{{whole * under + part}}}{{{under}}}" if part < under else found[0]


_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_PLAIN = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<whole>{_NUMBER})(?:\s*/\s*(?P<over>{_NUMBER})|\s+(?P<part>\d+)/(?P<under>\d+))?",
    re.ASCII,
)
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", re.ASCII)
WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|fbox|boxed)\s*\{([^{}]*)\}"
)
"""Commands that set their text in another face and mean nothing by it."""
_DOLLARS = re.compile(r"(?<!\\)\$")
_REPEATING = re.compile(r"(?P<whole>\d*)\.(?P<fixed>\d*)\\(?:overline|bar)\s*\{(?P<cycle>\d+)\}", re.ASCII)
_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "/", "π": "\\pi ", "∞": "\\infty ", "θ": "\\theta ",
        "≤": "\\le ", "≥": "\\ge ", "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ", "±": "\\pm ", "∈": "\\in ",
        "°": "^\\circ ", "²": "^2", "³": "^3", "½": " \\frac{1}{2}", "¼": " \\frac{1}{4}", "¾": " \\frac{3}{4}",
        "，": ",", "、": ",", "；": ";", "（": "(", "）": ")", "％": "%", "\u00a0": " ", "\u202f": " ", "≠": "\\ne ",
    }
)  # fmt: skip
_SPELLINGS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"\\leq(?:slant)?(?![A-Za-z])|<=", r"\\le "),
    (r"\\geq(?:slant)?(?![A-Za-z])|>=", r"\\ge "),
    (r"\\neq(?![A-Za-z])", r"\\ne "),
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\lbrack(?![A-Za-z])", "["),
    (r"\\rbrack(?![A-Za-z])", "]"),
    (r"\\l?brace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\approx(?![A-Za-z])", "="),
    (r"(?<![\\A-Za-z])√\s*(\w)", r"\\sqrt{\1}"),
    (r"√", r"\\sqrt "),
    (r"(?<![\\A-Za-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"(?<![\\A-Za-z])((?:arc)?(?:sin|cos|tan|cot|sec|csc)|log|ln|exp)(?=[\s({^_\\])", r"\\\1 "),
    (r"(?<![\\A-Za-z])(?:pi)(?![A-Za-z])", r"\\pi "),
    (r"(?<![\\A-Za-z])(?:oo|infinity|infty)(?![A-Za-z])", r"\\infty "),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*\{([^{}]*)\}\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*\{(-?[^{}]*)\}\s*\{([^{}]*)\}", r"\\frac{\1}{\2}"),
    (r"(?<![\d.}^_A-Za-z])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", _mixed),
    (r"(?<![\d.)}^_A-Za-z])(\d+)\s+(\d+)/(\d+)(?![\d/])", _mixed),
    (r"(?<=\d)\s+thousand(?![A-Za-z])", r" \\cdot 1000"),
    (r"(?<=\d)\s+million(?![A-Za-z])", r" \\cdot 1000000"),
    (r"(?<=\d)\s+billion(?![A-Za-z])", r" \\cdot 1000000000"),
    (r"(?<![\w.])(\d+\.?\d*)[eE]([+-]?)\s*0*(\d{1,3})(?![\w.])", r"\1 \\cdot 10^{\2\3}"),
    (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r" \\cdot "),
    (r"(?<=\d)\s*([ap])\.?\s?m\.?(?![A-Za-z])", r" \1m"),
    (r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d.,])", lambda m: m[0].replace(" ", "")),
    (r"\s*(?:\\%|%|(?<![A-Za-z])percent(?![A-Za-z]))", r"\\%"),
]
_REWRITES = [(re.compile(pattern), spelling) for pattern, spelling in _SPELLINGS]
