"""Whether two written answers are the same answer: their form here, their formulas by a function that is passed in.

An answer is read as text, a choice, a list, a set, a tuple, an interval, a union, an equation, or a quantity with a
unit; forms must agree before parts are compared. The rules:

* A word answer (`\\text{east}`, `no solution`) equals the same words, whatever their case and articles.
* A choice (`B`, `(B)`) equals its letter, however marked and with its text behind it: `(B)`, `B.`, `B) 12`.
* A list (`1, 2`, `1 and 2`, `x = 1 or x = 2`, `\\pm 1`) and a set hold the same elements in any order, each once.
  One value is no list: several candidates never equal one answer.
* A tuple keeps its order and its brackets; a bare list may stand for it, in its order. `\\{72\\}` is not 72.
* An interval keeps its brackets; `]0,1[` is `(0,1)`, `0 \\le x < 1` and `\\{x \\mid 0 \\le x < 1\\}` are `[0,1)`.
* `x = 5` is 5, but not `y = 5`. Of `48 + 24 = 72` every side counts. An equation equals no number.
* Units: see `math_units`. A percentage equals its value (`50\\%` is 1/2) and its bare number, unless that is a gold
  answer of at most 1 (0.5 is not `0.5\\%`).
* The base of a number may be left out if the gold answer has it: `101_2` is 101, but not `101_3`.
* Decimals are exact: 0.333 is not 1/3, and no decimal is `\\sqrt{2}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from k2rl_rewards.math_spelling import WRAPPER, canonical, exact, plain_number, squeezed
from k2rl_rewards.math_units import same_unit, split_unit

Same = Callable[[str, str], bool]
"""`(gold, answer) -> equal`, of two formulas in LaTeX."""


def equal(gold: str, answer: str, same: Same) -> bool:
    """Whether an answer is the gold one; `same` is asked about formulas that are not plain numbers."""
    answer = canonical(answer)
    if (words := _words(gold)) is not None:
        return words == _bare_words(answer)
    return _equal(canonical(gold), answer, same)


def probe(gold: str, same: Same) -> None:
    """Ask `same` about each formula of a gold answer, beside a number that none is."""
    text = canonical(gold)
    form = read(text)
    for part in form.parts:
        if form.kind == "one" or part == text:
            same(exact(split_unit(part)[0]), "\\sqrt{7919}")
        else:
            probe(part, same)


def _words(gold: str) -> str | None:
    """The gold answer as bare words if it is a word answer; None for mathematics."""
    wrapped = WRAPPER.fullmatch(gold.strip().strip("$").strip())
    inner = _bare_words(wrapped[1] if wrapped else gold)
    letters = re.sub(r"[\W\d_]", "", inner)
    if not letters or re.search(r"[\\^_=+*/<>{}()\[\]]", wrapped[1] if wrapped else gold):
        return None
    first = re.match(r"[^\W\d_]+", inner)
    if wrapped is not None:
        return inner if first and len(letters) > 1 and _LIST.search(inner) is None else None
    if first is None or _LIST.search(gold) or _FUNCTION.fullmatch(first[0]) or _CONSTANT.fullmatch(first[0]):
        return None
    return inner if len(first[0]) > 2 or inner in _SHORT_WORDS else None


def _bare_words(text: str) -> str:
    text = re.sub(r"\b(?:the|an?)\s+|[.,!?\"'‘’“”$]", "", text.casefold())
    return " ".join(re.sub(r"(?<=\w)-(?=\w)", " ", text).split())


def _choice(text: str) -> tuple[str, str] | None:
    """The letter and the text behind it: `(B)`, `B.`, `B) 12`, `option B`; None if it is no choice or several."""
    found = _CHOICE.fullmatch(text)
    if found is None or _OTHER_CHOICE.search(found["text"] or ""):
        return None
    return found["marked"] or found["bare"], (found["text"] or "").strip()


def _same_choice(wanted: tuple[str, str], answer: str, same: Same) -> bool:
    letter, text = wanted
    given = _choice(answer) or _choice(f"({answer})")
    if given is None:
        return bool(text) and _equal(text, answer, same)
    return letter.upper() == given[0].upper() and (not text or not given[1] or equal(text, given[1], same))


@dataclass(frozen=True)
class Form:
    """What is compared part by part. `kind`: one, list, set, union, or the two brackets of a tuple or interval;
    `name`: the variable of an inequality or of `x \\in …`."""

    kind: str
    parts: tuple[str, ...]
    name: str = ""


def read(text: str, depth: int = 0) -> Form:
    """The form of a canonical answer."""
    text = text.strip()
    if depth > 8:
        return Form("one", (text,))
    if found := _MEMBER.fullmatch(text):
        inner = read(found["set"], depth + 1)
        return inner if inner.kind == "one" else Form(inner.kind, inner.parts, found["name"])
    if found := _BUILDER.fullmatch(text):
        inner = read(found["condition"], depth + 1)
        return inner if inner.name == found["name"] else Form("one", (text,))
    parts = _split(text, _LIST)
    if len(parts) > 1:
        forms = [read(p, depth + 1) for p in parts]
        if forms[0].name and len({f.name for f in forms}) == 1 and not re.search(r"[,;]|and|land|wedge", text):
            return Form("union", tuple(parts), forms[0].name)
        return Form("list", tuple(sign for p in parts for sign in _signs(p)))
    bracket = _bracket(text)
    if len(signs := _signs(text)) > 1 and (bracket is None or bracket[0] in _BRACKETS):
        return Form("list", signs)
    if len(unions := _split(text, _UNION)) > 1:
        return Form("union", tuple(unions))
    if bracket is not None:
        kind, inside = bracket
        inner_parts = tuple(_split(inside, _COMMA))
        if kind == "{}":
            return read(inside, depth + 1)
        if kind == "set":
            return Form("set", tuple(sign for p in inner_parts for sign in _signs(p)))
        if kind == "()" and len(inner_parts) == 1:
            return read(inside, depth + 1)
        return Form(kind, inner_parts)
    return _inequality(text) or Form("one", (text,))


def _equal(gold: str, answer: str, same: Same, depth: int = 0) -> bool:
    if squeezed(gold) == squeezed(answer):
        return True
    if depth > 8:
        return same(gold, answer)
    if (words := _words(gold)) is not None:
        return words == _bare_words(answer)
    if (choice := _choice(gold)) is not None:
        return _same_choice(choice, answer, same)
    wanted, given = read(gold), read(answer)

    def pairwise(golds: Sequence[str], answers: Sequence[str]) -> bool:
        return len(golds) == len(answers) and all(
            _equal(g, a, same, depth + 1) for g, a in zip(golds, answers, strict=True)
        )

    def unordered(golds: Sequence[str], answers: Sequence[str]) -> bool:
        left = list(answers)
        for g in golds:
            found = next((a for a in left if _equal(g, a, same, depth + 1)), None)
            if found is None:
                return False
            left.remove(found)
        return not left

    if wanted.name and given.name and wanted.name != given.name:
        return False
    kinds = {wanted.kind, given.kind}
    if kinds == {"one"}:
        return _same_sides(wanted.parts[0], given.parts[0], same)
    if kinds <= {"list", "set"}:
        golds, answers, ordered = _without_names(wanted.parts, given.parts)
        return pairwise(golds, answers) if ordered else len(golds) == len(answers) and unordered(golds, answers)
    if kinds == {"list", "()"}:
        golds, answers, _ = _without_names(wanted.parts, given.parts)
        return pairwise(golds, answers)
    if kinds == {"union", "list"}:
        return unordered(wanted.parts, given.parts)
    if "union" in kinds and kinds <= {"union", *_BRACKETS}:
        if wanted.kind == given.kind and unordered(wanted.parts, given.parts):
            return True
        return same(_as_sets(wanted, gold), _as_sets(given, answer))
    return wanted.kind == given.kind and pairwise(wanted.parts, given.parts)


def _same_sides(gold: str, answer: str, same: Same) -> bool:
    """Two formulas, or equations."""
    golds, answers = _split(gold, _EQUALS), _split(answer, _EQUALS)
    if answer.count("=") >= len(answers) and gold.count("=") < len(golds):
        return False  # An equation in brackets beside another one.
    named, answer_named = _NAME.fullmatch(golds[0]), _NAME.fullmatch(answers[0])
    if len(golds) == 1:
        while len(answers) > 1 and _NAME.fullmatch(answers[0]):
            answers = answers[1:]
        return all(_same_quantity(gold, side, same) for side in answers)
    if len(golds) == 2 and named:
        if len(answers) == 1:
            return _same_quantity(golds[1], answer, same)
        if answer_named:
            same_name = squeezed(golds[0]) == squeezed(answers[0])
            return same_name and all(_same_quantity(golds[1], side, same) for side in answers[1:])
    return len(answers) > 1 and _same_formula(gold, answer, same)


def _same_quantity(gold: str, answer: str, same: Same) -> bool:
    """Two values, with or without a unit, a percent sign or a base."""
    share, answer_share = _PERCENT.fullmatch(gold), _PERCENT.fullmatch(answer)
    if share and answer_share:
        return _same_formula(share[1], answer_share[1], same)
    if share:
        return _same_formula(share[1], answer, same) or _same_formula(f"\\frac{{{share[1]}}}{{100}}", answer, same)
    if answer_share:
        number = plain_number(gold)
        if number is not None and number > 1 and _same_formula(gold, answer_share[1], same):
            return True
        return _same_formula(gold, f"\\frac{{{answer_share[1]}}}{{100}}", same)
    (number_text, unit), (answer_text, answer_unit) = split_unit(gold), split_unit(answer)
    if not same_unit(unit, answer_unit):
        return False
    base, answer_base = _BASE.fullmatch(number_text), _BASE.fullmatch(answer_text)
    if base or answer_base:
        digits, written = (base[1], base[2]) if base else (number_text, "10")
        given, given_base = (answer_base[1], answer_base[2]) if answer_base else (answer_text, written)
        return digits.lower() == given.lower() and written == given_base
    return _same_formula(number_text, answer_text, same)


def _same_formula(gold: str, answer: str, same: Same) -> bool:
    if squeezed(gold) == squeezed(answer):
        return True
    wanted, given = plain_number(_hundredth(gold)), plain_number(_hundredth(answer))
    if wanted is not None and given is not None:
        return wanted == given
    if ":" in gold + answer:
        return _same_ratio(gold.split(":"), answer.split(":"))
    if not answer or _foreign(gold, answer):
        return False
    return same(exact(gold), exact(answer))


def _same_ratio(gold: list[str], answer: list[str]) -> bool:
    """`4:2` is 2:1, but no number; `3:30` may be a time of day, which has one spelling."""
    numbers = [plain_number(n) for n in (*gold, *answer)]
    if len(gold) != 2 or len(answer) != 2 or any(re.fullmatch(r"\d\d", side[1].strip()) for side in (gold, answer)):
        return False
    a, b, c, d = numbers
    return None not in numbers and 0 not in numbers and a * d == b * c  # type: ignore[operator]


def _foreign(gold: str, answer: str) -> bool:
    """Whether the answer holds what no formula equal to the gold one needs: another letter, a word, two numbers side
    by side, a command or sign that a parser may skip."""
    letters = [set(re.sub(r"\\(?:begin|end)\s*\{\w+\}|\\[A-Za-z]+", " ", t)) - set(_NO_LETTERS) for t in (gold, answer)]
    commands = [set(re.findall(r"\\[A-Za-z]+", t)) for t in (gold, answer)]
    environments = [set(re.findall(r"\\begin\s*\{(\w+)\}", t)) for t in (gold, answer)]
    return bool(
        letters[1] - letters[0] - {"e", "i"}
        or any(mark in answer and mark not in gold for mark in "'\"?")
        or commands[1] - commands[0] - _COMMANDS
        or environments[1] - environments[0] - {"matrix", "pmatrix", "bmatrix", "Bmatrix", "vmatrix"}
        or re.search(r"\d\s+[\d.]|(?<![A-Za-z])\d\s*_", answer)
        or (re.search(r"[<>]|\\[lg]e(?![A-Za-z])", answer) and not re.search(r"[<>]|\\[lg]e(?![A-Za-z])", gold))
    )


def _without_names(golds: Sequence[str], answers: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Both sides without the names that one has: `x = 1, y = 2` beside `(1, 2)`; and whether order counts."""
    named, answer_named = _named(golds), _named(answers)
    if (named is None) == (answer_named is None):
        return list(golds), list(answers), False
    names = named or answer_named
    assert names is not None
    bare = [value for _, value in names]
    labels = [name for name, _ in names]
    ordered = len(set(labels)) > 1
    if ordered and labels != sorted(labels):
        bare = ["", *bare]  # Which is which can't be told.
    return (bare, list(answers), ordered) if named else (list(golds), bare, ordered)


def _named(parts: Sequence[str]) -> list[tuple[str, str]] | None:
    sides = [_split(p, _EQUALS) for p in parts]
    if not all(len(s) == 2 and _NAME.fullmatch(s[0]) for s in sides):
        return None
    return [(squeezed(s[0]), s[1]) for s in sides]


def _inequality(text: str) -> Form | None:
    """`0 \\le x < 1` as `[0, 1)`; None unless one variable stands between or beside values."""
    ops = _COMPARE.findall(text)
    sides = [s.strip() for s in _COMPARE.split(text)]
    if not ops or not all(sides) or len(_split(text, _COMPARE)) != len(sides):
        return None
    less = [op in ("<", "\\le") for op in ops]
    closed = ["\\" in op for op in ops]
    if len(ops) == 1 and _VARIABLE.fullmatch(sides[1]):
        sides, less = sides[::-1], [not less[0]]
    if len(ops) == 1 and _VARIABLE.fullmatch(sides[0]) and not _VARIABLE.fullmatch(sides[1]):
        if less[0]:
            return Form("(]" if closed[0] else "()", ("-\\infty", sides[1]), sides[0])
        return Form("[)" if closed[0] else "()", (sides[1], "\\infty"), sides[0])
    if len(ops) == 2 and less[0] == less[1] and _VARIABLE.fullmatch(sides[1]):
        low, high = (sides[0], sides[2]) if less[0] else (sides[2], sides[0])
        if not less[0]:
            closed = closed[::-1]
        return Form(("[" if closed[0] else "(") + ("]" if closed[1] else ")"), (low, high), sides[1])
    return None


def _as_sets(form: Form, text: str) -> str:
    """A union or an interval in LaTeX, inequalities included."""
    if form.kind in _BRACKETS:
        return f"{form.kind[0]}{', '.join(form.parts)}{form.kind[1]}"
    return "\\cup ".join(_as_sets(read(p), p) for p in form.parts) if form.kind == "union" else text


def _signs(text: str) -> tuple[str, ...]:
    """`3 \\pm 4i` -> `3 + 4i`, `3 - 4i`."""
    if not _PLUS_MINUS.search(text):
        return (text,)
    upper = _PLUS_MINUS.sub(lambda m: "+" if m.group() == "\\pm" else "-", text)
    lower = _PLUS_MINUS.sub(lambda m: "-" if m.group() == "\\pm" else "+", text)
    return upper.removeprefix("+"), lower.removeprefix("+")


def _bracket(text: str) -> tuple[str, str] | None:
    """The kind and the inside of a bracket around all of a text; `]0,1[` is `()`."""
    for opening, closing, kind in (("\\{", "\\}", "set"), ("\\langle", "\\rangle", "()"), ("{", "}", "{}")):
        if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing):
            inside = text[len(opening) : -len(closing)]
            return (kind, inside) if _level(inside) else None
    if (
        len(text) < 2
        or text[0] not in "([]"
        or text[-1] not in ")[]"
        or (text[0] + text[-1] == "][" and "," not in text)
    ):
        return None
    left = "(" if text[0] == "]" else text[0]
    right = ")" if text[-1] == "[" else text[-1]
    return (left + right, text[1:-1]) if _level(text[1:-1]) else None


def _level(text: str) -> bool:
    """Whether brackets never close more than was opened (mixed pairs such as `[0,1)` count as pairs)."""
    depth = 0
    for found in _NESTING.finditer(text):
        depth += 1 if found.lastgroup == "open" else -1
        if depth < 0:
            return False
    return depth == 0


def _split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts between separators outside all brackets; empty parts are left out, if any is not."""
    parts, depth, start = [], 0, 0
    marks = [(m.start(), m.end(), 1 if m.lastgroup == "open" else -1) for m in _NESTING.finditer(text)]
    cuts = [(m.start(), m.end(), 0) for m in separator.finditer(text)]
    # `]0,1[` opens with a closing bracket: such a text is balanced only once its ends are swapped.
    if text.startswith("]") or (text.endswith("[") and len(text) > 1):
        marks = [(s, e, 1 if s == 0 else -1 if e == len(text) else d) for s, e, d in marks]
    for begin, end, step in sorted(marks + cuts):
        depth += step
        if step == 0 and depth <= 0:
            parts.append(text[start:begin].strip())
            start = end
    parts.append(text[start:].strip())
    return [p for p in parts if p] or [text]


def _hundredth(text: str) -> str:
    """`\\frac{12.5}{100}` as a plain fraction, which has no decimals within."""
    return re.sub(r"\\frac\{(-?[\d./ ]+)\}\{100\}", lambda m: _divided(m[1], m[0]), text)


def _divided(number: str, text: str) -> str:
    value = plain_number(number)
    return text if value is None else str(value / 100)


_FUNCTION = re.compile(r"a?(?:rc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|exp|sqrt|max|min|gcd|lcm|det|mod")
_CONSTANT = re.compile(r"pi|oo|inf|infinity|theta|alpha|beta|phi|lambda")
_SHORT_WORDS = frozenset({"no", "up", "am", "pm"})
_CHOICE = re.compile(
    r"(?:(?:[Oo]ption|[Cc]hoice)\s+)?(?:\(\s*(?P<marked>[A-Ja-j])\s*\)|(?P<bare>[A-Z])(?=[).:]|$))"
    r"(?:[).:]*\s*|[).:]*\s+(?P<text>(?:-?[\w\\$.]|\().*))",
    re.DOTALL,
)
_OTHER_CHOICE = re.compile(
    r"(?:^|[\s(/&,;])[A-Ja-j]\)|\b[B-J][.:]|(?:^|\bor\b|\band\b|[/&,;])\s*[A-J](?=\s*(?:$|[,;/&]|or\b|and\b))"
)
_NAME = re.compile(
    r"(?:m?\\angle\s*)?(?:[A-Za-z][A-Za-z' ]*|\\(?:theta|alpha|beta|gamma|phi|lambda|mu|sigma|omega))"
    r"\s*(?:_\s*\{?\s*\w+\s*\}?)?(?:\^\{-1\})?\s*(?:\(\s*\w\s*\))?"
)
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:theta|alpha|beta|gamma|phi|lambda|mu|sigma|omega)")
_MEMBER = re.compile(r"(?P<name>[A-Za-z]|\\[a-z]+)\s*\\in(?![A-Za-z])\s*(?P<set>.+)", re.DOTALL)
_BUILDER = re.compile(
    r"\\\{\s*(?P<name>[A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{?R\}?\s*)?(?::|\||\\mid(?![A-Za-z]))(?P<condition>.+)\\\}",
    re.DOTALL,
)
_BASE = re.compile(r"([0-9A-Fa-f]*\d[0-9A-Fa-f]*)\s*_\s*\{?\s*(\d{1,2})\s*\}?")
_PERCENT = re.compile(r"([^%]+?)\s*\\%", re.DOTALL)
_LIST = re.compile(r"[,;]|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])|\\(?:vee|lor|land|wedge)(?![A-Za-z])")
_COMMA = re.compile(r"[,;]")
_UNION = re.compile(r"\\cup(?![A-Za-z])")
_EQUALS = re.compile(r"(?<![<>!:])=")
_COMPARE = re.compile(r"\\[lg]e(?![A-Za-z])|[<>]")
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_NESTING = re.compile(r"(?P<open>\\\{|\\begin\b|\\langle|[{(\[])|(?P<close>\\\}|\\end\b|\\rangle|[})\]])")
_BRACKETS = ("()", "(]", "[)", "[]")
_NO_LETTERS = "0123456789.,;:!?'|+-*/^_=<>()[]{}&\\ %\n\t"
# What a right answer may use though the gold one does not.
_COMMANDS = frozenset(
    re.findall(
        r"\\[a-z]+",
        r"\frac\sqrt\cdot\times\div\pi\infty\sin\cos\tan\cot\sec\csc\arcsin\arccos\arctan\sinh\cosh\tanh\log\ln\exp"
        r"\lim\sum\prod\int\binom\begin\end\lfloor\rfloor\lceil\rceil\lvert\rvert\vert\cup\cap\emptyset\le\ge\circ\det"
        r"\mathbb\alpha\beta\gamma\theta\phi\lambda\mu\sigma\omega\angle\langle\rangle\imath",
    )
)
