"""Calls between two jails: test code in one, the program in the other, a pipe each way.

Builtin values cross by value, as exact builtin types: what arrives can't claim to equal everything. Other objects stay
with the program and are reached by handle: attributes, items, iteration and calls work on a handle; comparing it or
asking for its truth does not, for then the program would decide. Functions of the tests may be passed as callbacks.

A message is one line of JSON. The reader of a line is in a jail itself, with limits of its own.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any


class RemoteError(Exception):
    """The program broke the rules of the conversation, or is gone."""


class Peer:
    """One end: sends requests, and answers the other end's while it waits for a reply."""

    def __init__(self, receive: int, send: int, answer: Callable[[str, list[Any]], Any]) -> None:
        self._lines = os.fdopen(receive, "rb")
        self._send_fd = send
        self._answer = answer
        self.objects: list[Any] = []  # ours, by handle
        self.calls = 0
        self.broken: BaseException | None = None  # why the last request was not answered as it should

    def announce(self, names: dict[str, bool]) -> None:
        """Tell the other end which names there are, and whether each can be called."""
        self._send(["names", names])

    def fail(self, reason: str) -> None:
        """Tell it instead that there is nothing to talk to."""
        self._send(["failed", reason])

    def announced(self) -> dict[str, bool]:
        """What the other end announced.

        Raises:
            RemoteError: it failed, or sent something else.
        """
        match self._receive():
            case ["names", dict(names)]:
                return names
            case ["failed", str(reason)]:
                raise RemoteError(reason)
        raise RemoteError("the program ended before it was asked anything")

    def ask(self, what: str, *args: Any) -> Any:
        """The other end's answer, or the exception it raised there."""
        self.calls += what == "call"
        try:
            answer, raised = self._answered([what, *(self.pack(a) for a in args)])
        except BaseException as error:
            self.broken = error
            raise
        if raised is None:
            return answer
        if what != "next" and isinstance(raised, StopIteration | StopAsyncIteration):
            # It would end `all(map(…))` around the call: true, and nothing more is asked.
            raise RuntimeError(f"the program raised {type(raised).__name__}")
        raise raised

    def _answered(self, request: list[Any]) -> tuple[Any, Exception | None]:
        """What came back, and what was raised."""
        self._send(request)
        while True:
            message = self._receive()
            if message is None:
                raise RemoteError("the program ended before it answered")
            if message[0] == "return":
                return self.unpack(message[1]), None
            if message[0] == "raise":
                return None, _exception(message[1], str(message[2]))
            self._serve(message)

    def serve(self) -> None:
        """Answer until the other end closes its pipe."""
        while (message := self._receive()) is not None:
            self._serve(message)

    def _serve(self, message: list[Any]) -> None:
        try:
            reply = ["return", self.pack(self._answer(message[0], [self.unpack(m) for m in message[1:]]))]
        except BaseException as error:
            names = [c.__name__ for c in type(error).__mro__]
            reply = ["raise", names, str(error)[:500]]
        self._send(reply)

    def _send(self, message: list[Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._send_fd, data) :]

    def _receive(self) -> list[Any] | None:
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            return None
        message = json.loads(line)
        if not isinstance(message, list) or not message or not isinstance(message[0], str):
            raise RemoteError("the program sent something that is no message")
        return message

    def pack(self, value: Any) -> Any:
        """A value as JSON: plain where JSON has it, else a list of a mark and its parts."""
        if value is None or value is True or value is False:
            return value
        if isinstance(value, Handle):
            return ["theirs", object.__getattribute__(value, "_id")]
        if isinstance(value, int):
            return int(value) if -(2**53) < value < 2**53 else ["int", f"{int(value):x}"]
        if isinstance(value, str):
            return str.__str__(value)
        for kind, mark in _PARTS.items():
            if isinstance(value, kind):
                return [mark, *map(self.pack, value)]
        if isinstance(value, dict):
            return ["dict", *([self.pack(k), self.pack(v)] for k, v in dict.items(value))]
        if isinstance(value, float):
            return ["float", float(value).hex()]
        if isinstance(value, bytes | bytearray):
            return ["bytes", bytes(value).hex()]
        if isinstance(value, complex):
            return ["complex", value.real.hex(), value.imag.hex()]
        if isinstance(value, Fraction):
            return ["fraction", f"{value.numerator:x}", f"{value.denominator:x}"]
        if isinstance(value, type) and value in _TYPES.values():
            return ["type", value.__name__]
        for number, known in enumerate(self.objects):
            if known is value:
                return ["mine", number, type(value).__name__]
        self.objects.append(value)
        return ["mine", len(self.objects) - 1, type(value).__name__]

    def unpack(self, data: Any) -> Any:
        """The value of `pack`ed data, of exact builtin types.

        Raises:
            RemoteError: ill-formed data.
        """
        if data is None or isinstance(data, bool | int | float | str):
            return data
        if not isinstance(data, list) or not data or not isinstance(data[0], str):
            raise RemoteError("an ill-formed value")
        mark, parts = data[0], data[1:]
        try:
            if mark == "theirs":
                return self.objects[parts[0]]
            if mark == "mine":
                return Handle(self, int(parts[0]), str(parts[1]))
            return _DECODERS[mark](self, parts)
        except (LookupError, ValueError, TypeError) as error:
            raise RemoteError(f"an ill-formed value: {type(error).__name__}") from None


_TYPES = {t.__name__: t for t in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, type(None))}
_PARTS = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_DECODERS: dict[str, Callable[[Peer, list[Any]], Any]] = {
    "type": lambda peer, parts: _TYPES[parts[0]],
    "int": lambda peer, parts: int(parts[0], 16),
    "float": lambda peer, parts: float.fromhex(parts[0]),
    "bytes": lambda peer, parts: bytes.fromhex(parts[0]),
    "complex": lambda peer, parts: complex(float.fromhex(parts[0]), float.fromhex(parts[1])),
    "fraction": lambda peer, parts: Fraction(int(parts[0], 16), int(parts[1], 16)),
    "list": lambda peer, parts: [peer.unpack(p) for p in parts],
    "tuple": lambda peer, parts: tuple(peer.unpack(p) for p in parts),
    "set": lambda peer, parts: {peer.unpack(p) for p in parts},
    "frozenset": lambda peer, parts: frozenset(peer.unpack(p) for p in parts),
    "dict": lambda peer, parts: {peer.unpack(k): peer.unpack(v) for k, v in parts},
}


class Handle:
    """An object that lives at the other end."""

    def __init__(self, peer: Peer, number: int, kind: str) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_id", number)
        object.__setattr__(self, "_kind", kind)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _ask(self, "call", list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        return _ask(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "setitem", key, value)

    def __len__(self) -> int:
        return int(_ask(self, "len"))

    def __iter__(self) -> Iterator[Any]:
        there = _ask(self, "iter")
        while True:
            try:
                yield _ask(there, "next")
            except StopIteration:
                return

    def __next__(self) -> Any:
        return _ask(self, "next")

    def __repr__(self) -> str:
        return f"<{object.__getattribute__(self, '_kind')} of the program>"

    __hash__ = object.__hash__

    def _refuse(self, *others: Any) -> Any:
        raise TypeError(
            f"{self!r} can't be compared or judged from outside: the program would decide; return builtin values"
        )

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _refuse


def _ask(handle: Handle, what: str, *args: Any) -> Any:
    peer: Peer = object.__getattribute__(handle, "_peer")
    return peer.ask(what, handle, *args)


def answer_for_program(what: str, args: list[Any]) -> Any:
    """What the program's end does with a request about one of its objects."""
    match what, args:
        case "call", [function, list(positional), dict(named)]:
            return function(*positional, **named)
        case "getattr", [thing, str(name)]:
            return getattr(thing, name)
        case "setattr", [thing, str(name), value]:
            return setattr(thing, name, value)
        case "getitem", [thing, key]:
            return thing[key]
        case "setitem", [thing, key, value]:
            thing[key] = value
            return None
        case "len", [thing]:
            return len(thing)
        case "iter", [thing]:
            return iter(thing)
        case "next", [thing]:
            return next(thing)
    raise RemoteError(f"no such request: {what[:20]!r}")


def answer_for_tests(what: str, args: list[Any]) -> Any:
    """What the tests' end does: it lets its callbacks be called, and nothing else, for from any function's attributes
    a way leads to everything."""
    match what, args:
        case "call", [function, list(positional), dict(named)]:
            return function(*positional, **named)
    raise RemoteError("the tests' objects can be called, nothing else")


def _exception(names: Any, message: str) -> Exception:
    """The nearest builtin exception of the same name.

    Raises:
        RemoteError: there is none: in one process it would have ended the tests too.
    """
    for name in names if isinstance(names, list) else []:
        kind = getattr(builtins, name, None) if isinstance(name, str) else None
        if isinstance(kind, type) and issubclass(kind, Exception):
            made: Exception = RemoteError(message) if issubclass(kind, UnicodeError) else kind(message)
            return made
    raise RemoteError(f"the program ended by {names[0] if isinstance(names, list) and names else '?'}: {message}")
