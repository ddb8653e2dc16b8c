"""What runs inside a jail: a job, read from a file descriptor, and its result, written to another.

Nothing here is trusted by anyone outside: the program shares this process and may have changed all of it.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import contextlib
import importlib
import json
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, Literal, TextIO

from k2rl.sandbox import rpc
from k2rl.sandbox.canonical import canonical

JOB, RESULT = 3, 4
MODULE = "program"


def run() -> int:
    """Do the job; the process's exit code."""
    with os.fdopen(JOB, "rb") as file:
        job = json.load(file)
    return _KINDS[job["kind"]](job)


def frame(mark: bytes, content: bytes) -> bytes:
    """One result: a mark, the length, the content."""
    return mark + len(content).to_bytes(4, "big") + content


def _write(mark: bytes, content: bytes = b"") -> None:
    data = frame(mark, content)
    while data:
        data = data[os.write(RESULT, data) :]


def _said(error: BaseException) -> bytes:
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return text[:300].encode("utf-8", "replace")


def _load(source: str, name: str = MODULE) -> dict[str, Any]:
    """The program's global names, after it ran."""
    module = types.ModuleType(name)
    module.__file__ = sys.argv[0]
    sys.modules[name] = module
    exec(compile(source, f"<{name}>", "exec", dont_inherit=True), module.__dict__)
    return module.__dict__


def _failed(error: BaseException) -> None:
    """A frame that says why the program failed as a whole: `s` where it is no Python, else `x`."""
    _write(b"s" if isinstance(error, SyntaxError) else b"x", _said(error))


def _calls(job: dict[str, Any]) -> int:
    """One frame per call: `v` and the canonical form of what it returned, or `e` and the exception."""
    arguments = [ast.literal_eval(args) for _, args in job["calls"]]
    try:
        scope = _load(job["program"])
    except BaseException as error:
        _failed(error)
        return 1
    for (name, _), args in zip(job["calls"], arguments, strict=True):
        try:
            mark, content = b"v", canonical(scope[name](*args))
        except KeyError as error:
            mark, content = b"e", f"the program defines no {name}".encode() if name not in scope else _said(error)
        except BaseException as error:
            mark, content = b"e", _said(error)
        _write(mark, content)
    return 0


def _script(job: dict[str, Any]) -> int:
    """The program as a script on its stdin and stdout, ended as an interpreter ends one."""
    stdin, stdout = _stream(0, "r"), _stream(1, "w")
    vars(sys).update(stdin=stdin, __stdin__=stdin, stdout=stdout, __stdout__=stdout)
    code = 0
    try:
        _load(job["program"], "__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException as error:
        _failed(error)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the program's threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, stdout):
        with contextlib.suppress(Exception):  # a program may have closed it, or put something of its own there
            stream.flush()
    return code & 0xFF


def _stream(fd: int, mode: Literal["r", "w"]) -> TextIO:
    return open(fd, mode, encoding="utf-8", errors="surrogateescape", closefd=False)


def _serve(job: dict[str, Any]) -> int:
    """The program answers the tests' calls."""
    os.dup2(5, JOB)
    os.close(5)
    scope: dict[str, Any] = {}
    peer = rpc.Peer(
        JOB, RESULT, lambda what, args: scope[args[0]] if what == "name" else rpc.answer_for_program(what, args)
    )
    try:
        scope.update(_load(job["program"]))
    except BaseException as error:
        peer.fail(_said(error).decode())
        return 1
    names = {n: callable(v) for n, v in scope.items() if isinstance(n, str) and not n.startswith("__")}
    peer.announce(names)
    peer.serve()
    return 0


def _tests(job: dict[str, Any]) -> int:
    """Run test sources one after another; a frame `p` for each that ends well, `f` and the reason for others."""
    peer = rpc.Peer(5, 6, rpc.answer_for_tests)
    try:
        theirs = peer.announced()
    except rpc.RemoteError as error:
        _write(b"x", str(error).encode("utf-8", "replace"))
        return 1
    fns = frozenset(job["fns"])
    scope: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    for source in job["sources"]:
        peer.broken = None
        try:
            tree = ast.parse(source)
            _bind(tree, scope, fns, theirs, lambda name: peer.ask("name", name))
            exec(compile(tree, "<tests>", "exec", dont_inherit=True), scope)
            mark, content = b"p", b""
        except BaseException as error:
            mark, content = b"f", _said(error)
        if peer.broken and mark == b"p":  # the test may have taken it for an exception that it expects
            mark, content = b"f", _said(peer.broken)
        if not peer.calls and mark == b"p" and "assert" in source:
            mark, content = b"f", b"the test called nothing of the program"
        _write(mark, content)
    return 0


def _bind(
    tree: ast.Module, scope: dict[str, Any], fns: frozenset[str], theirs: dict[str, bool], fetch: Callable[[str], Any]
) -> None:
    """Give the names that a test uses and does not define their meaning: the program's, or a standard module."""
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Name)]
    based = {n.value.id for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    own = {n.id for n in names if isinstance(n.ctx, ast.Store)} | {
        n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)
    }
    modules = (based & sys.stdlib_module_names) - fns - own
    for name in sorted({n.id for n in names}):
        if name in scope or (hasattr(builtins, name) and name not in fns):
            continue
        if name in modules:
            scope[name] = importlib.import_module(name)
        elif name in theirs:
            scope[name] = fetch(name)


_KINDS: dict[str, Callable[[dict[str, Any]], int]] = {
    "calls": _calls,
    "script": _script,
    "serve": _serve,
    "tests": _tests,
}
