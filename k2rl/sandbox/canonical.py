"""A value as bytes, equal exactly where Python's `==` says so of builtin values.

What a program returned is never decoded outside its jail. It leaves as these bytes and is compared, byte for byte, with
those of the expected value: objects that claim to equal everything, hashes made to collide, deep nesting and integers
of a million digits have nothing to act on. A program that forges the bytes has to know the right ones, and a program
that knows them could as well return the value.
"""

from __future__ import annotations

import math
from collections.abc import Callable


class NoLiteralError(TypeError):
    """The value is no builtin one, so it has no canonical form."""


def canonical(value: object) -> bytes:
    """The canonical form of a value made of None, numbers, text, bytes, lists, tuples, dicts and sets.

    `1 == 1.0 == True` and `{1, 2} == frozenset({2, 1})`, but `[1] != (1,)`; a subclass counts as its builtin base, as
    `==` has it.

    Raises:
        NoLiteralError: another kind of object in it.
        RecursionError: nested too deep, or containing itself.
    """
    for kind, encode in _ENCODERS:
        if isinstance(value, kind):
            return encode(value)
    ratio = getattr(type(value), "as_integer_ratio", None)
    if ratio is not None:  # fractions and decimals, which compare equal to numbers
        over, under = ratio(value)
        return _ratio(int(over), int(under))
    raise NoLiteralError(f"a value of type {type(value).__name__} can't be compared outside the program")


def _integer(value: int) -> bytes:
    return b"i%x" % value if value >= 0 else b"i-%x" % -value


def _float(value: float) -> bytes:
    return _ratio(*value.as_integer_ratio()) if math.isfinite(value) else b"r%a" % value


def _ratio(over: int, under: int) -> bytes:
    return _integer(over) if under == 1 else b"r%s/%s" % (_integer(over), _integer(under))


def _complex(value: complex) -> bytes:
    return _float(value.real) if value.imag == 0 else b"c" + _float(value.real) + _float(value.imag)


def _sized(mark: bytes, content: bytes) -> bytes:
    return b"%s%d:%s" % (mark, len(content), content)


def _joined(mark: bytes, parts: list[bytes]) -> bytes:
    return b"%s%d(%s)" % (mark, len(parts), b" ".join(parts))


_ENCODERS: tuple[tuple[type | tuple[type, ...], Callable[..., bytes]], ...] = (
    (int, lambda v: _integer(int(v))),
    (str, lambda v: _sized(b"s", str.encode(v, "utf-8", "surrogatepass"))),
    (list, lambda v: _joined(b"l", [canonical(x) for x in list.__iter__(v)])),
    (tuple, lambda v: _joined(b"t", [canonical(x) for x in tuple.__iter__(v)])),
    (float, lambda v: _float(float(v))),
    (type(None), lambda v: b"N"),
    (dict, lambda v: _joined(b"d", sorted(canonical(k) + b"=" + canonical(x) for k, x in dict.items(v)))),
    ((set, frozenset, type({}.keys())), lambda v: _joined(b"S", sorted(canonical(x) for x in v))),
    ((bytes, bytearray), lambda v: _sized(b"b", bytes(v))),
    (complex, _complex),
)
