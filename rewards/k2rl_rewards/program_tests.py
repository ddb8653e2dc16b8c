"""From a reference to the tests of a program.

    {"tests": ["assert f(1) == 2", …], "setup": code}        assert lines, as in MBPP
    {"test": "def check(candidate): …", "entry_point": "f"}  HumanEval; "prompt" is what the program may go on from
    {"fn": "f", "cases": [[[1], 2], …]}                      arguments and expected value of each call
    {"io": [{"stdin": "1\\n", "stdout": "2\\n"}, …]}           what it reads and prints

`assert f(literals) == literal` becomes a `CallTest`, compared where the program can't reach; also the other way round,
with `is None`, and inside `check`. All else becomes a `ScriptTest`, run apart from the program: loops, helpers,
`math.isclose`, and what is not the same as `==` (`assert f(1)` takes any true value, `is True` no 1).

The setup runs before the scripts. Its imports and classes stand before the program too; nothing else of it does, for
its functions and values may be what the program is asked for. Names that nothing defines are the program's, and modules
of the standard library are imported; `"fns"` says which builtins are the program's own.
"""

from __future__ import annotations

import ast
import builtins
import cmath
import keyword
import re
import symtable
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from k2rl.errors import UserError
from k2rl.protocols import CallTest, ProgramTest, ScriptTest, StdioTest


@dataclass(frozen=True)
class ProgramTests:
    """What a program is tested by: the tests, the names under test, code that stands before the program, and the
    beginning that a response may go on from instead (HumanEval's prompt)."""

    tests: tuple[ProgramTest, ...]
    names: tuple[str, ...] = ()
    before: str = ""
    beginning: str = ""


def program_tests(reference: Mapping[str, object]) -> ProgramTests:
    """The tests of a reference in one of the forms above. Other keys of the reference are left alone.

    Raises:
        UserError: no form or more than one, no tests, test source that does not parse; says where.
    """
    forms = {"tests": _asserts, "test": _check, "fn": _cases, "io": _io}
    found = [form for form in forms if form in reference]
    if len(found) != 1:
        has = " and ".join(found) or ", ".join(reference) or "nothing"
        raise UserError(f"a reference holds one of {', '.join(forms)}, this one {has}")
    return forms[found[0]](reference)


def _asserts(reference: Mapping[str, object]) -> ProgramTests:
    setup = _text(reference, "setup") if "setup" in reference else ""
    setup_body = _parsed(setup, "setup")
    calls: dict[int, list[CallTest]] = {}
    scripts: dict[int, str] = {}
    for number, line in enumerate(_list(reference, "tests")):
        place = f"tests[{number}]"
        if not isinstance(line, str):
            raise UserError(f"{place} is no Python source: {line!r}")
        body = _parsed(line, place)
        if not body:
            raise UserError(f"{place} tests nothing: {line!r}")
        found = _calls(body, {})
        if found is None:
            scripts[number] = line
        else:
            calls[number] = found
    known = {call.fn for found in calls.values() for call in found}
    known |= {str(name) for name in _list(reference, "fns")} if "fns" in reference else set()
    prefix, names = _surroundings("\n".join([setup, *scripts.values()]), known) if scripts else ("", ())
    if scripts and not names:
        raise UserError(
            f"tests name no function of the program (fns says which builtins are): {next(iter(scripts.values()))!r}"
        )
    tests: list[ProgramTest] = []
    for number in range(len(calls) + len(scripts)):
        if number in calls:
            tests += calls[number]
            continue
        # Scripts share their names: the first one runs the setup for all.
        opening = f"{prefix}{setup}\n" if number == min(scripts) else ""
        tests.append(ScriptTest(opening + scripts[number], names))
    shared = [ast.unparse(s) for s in setup_body if isinstance(s, ast.Import | ast.ImportFrom | ast.ClassDef)]
    return ProgramTests(tuple(tests), tuple(sorted({*known, *names})), "\n".join(shared))


def _check(reference: Mapping[str, object]) -> ProgramTests:
    entry, test = _name(reference, "entry_point"), _text(reference, "test")
    prompt = _text(reference, "prompt") if "prompt" in reference else ""
    beginning = re.search(rf"^(?:async\s+)?def\s+{entry}\b", prompt, re.MULTILINE)
    before = prompt[: beginning.start()] if beginning else ""
    if prompt and not beginning:
        raise UserError(f"prompt does not define {entry}")
    _parsed(before, "prompt")
    body = _parsed(test, "test")
    checks = [s for s in body if isinstance(s, ast.FunctionDef) and s.name == "check" and len(s.args.args) == 1]
    if not checks:
        raise UserError("test does not define check(candidate)")
    check = checks[-1]
    statements = [s for s in check.body if not _is_idle(s)]
    calls = _calls(statements, {check.args.args[0].arg: entry}) if _only_defines(body) else None
    if not statements:
        raise UserError("test: check(candidate) tests nothing")
    if calls:
        return ProgramTests(tuple(calls), (entry,), before, prompt)
    source = f"{before}\n{test}\ncheck({entry})\n"
    prefix, names = _surroundings(source, {entry})
    return ProgramTests((ScriptTest(prefix + source, names),), (entry,), before, prompt)


def _cases(reference: Mapping[str, object]) -> ProgramTests:
    fn = _name(reference, "fn")
    tests = []
    for number, case in enumerate(_list(reference, "cases")):
        if not (isinstance(case, list | tuple) and len(case) == 2 and isinstance(case[0], list | tuple)):
            raise UserError(f"cases[{number}] must be [[argument, …], expected], got {str(case)[:80]}")
        if not _finite(case):
            raise UserError(f"cases[{number}] holds a number that is not finite: write an assert line with math.isnan")
        tests.append(CallTest(fn, repr(tuple(case[0])), repr(case[1])))
    return ProgramTests(tuple(tests), (fn,))


def _io(reference: Mapping[str, object]) -> ProgramTests:
    tests = []
    for number, pair in enumerate(_list(reference, "io")):
        if not (isinstance(pair, Mapping) and all(isinstance(pair.get(key), str) for key in ("stdin", "stdout"))):
            raise UserError(f"io[{number}] must have the texts stdin and stdout, got {str(pair)[:80]}")
        tests.append(StdioTest(pair["stdin"], pair["stdout"]))
    return ProgramTests(tuple(tests))


def _calls(body: Iterable[ast.stmt], renamed: Mapping[str, str]) -> list[CallTest] | None:
    """The statements as calls with an expected value; None where one of them is anything else."""
    found = [_call(statement, renamed) for statement in body]
    return [call for call in found if call] if all(found) else None


def _call(statement: ast.stmt, renamed: Mapping[str, str]) -> CallTest | None:
    match statement:
        case ast.Assert(ast.Compare(left, [ast.Eq()], [right])):
            sides = [(left, right), (right, left)]
        case ast.Assert(ast.Compare(left, [ast.Is()], [ast.Constant(None) as right])):
            sides = [(left, right)]
        case _:
            return None
    for side, expected in sides:
        match side:
            case ast.Call(ast.Name(fn), args, []) if all(map(_is_literal, [*args, expected])):
                arguments = ast.unparse(ast.Tuple(args, ast.Load()))
                return CallTest(renamed.get(fn, fn), arguments, ast.unparse(expected))
    return None


def _is_literal(node: ast.expr) -> bool:
    try:
        return _finite(ast.literal_eval(node))
    except (ValueError, TypeError, RecursionError, MemoryError, SyntaxError):
        return False


def _finite(value: object) -> bool:
    """Whether a value is made of None, finite numbers, texts, bytes, lists, tuples, sets and dicts alone."""
    if isinstance(value, Mapping):
        return all(_finite(k) and _finite(v) for k, v in value.items())
    if isinstance(value, list | tuple | set):
        return all(map(_finite, value))
    if isinstance(value, float | complex):
        return cmath.isfinite(value)
    return value is None or isinstance(value, int | str | bytes)


def _surroundings(source: str, known: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Imports of the standard library that test code lacks, and the names in it that the program has to define.

    `known` names are the program's also where a builtin has the same name.
    """
    table = symtable.symtable(source, "tests", "exec")
    bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()}
    free = {name for name in _global_names(table) if name not in bound}
    based = {
        n.value.id
        for n in ast.walk(ast.parse(source))
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    }
    modules = sorted((free & based & sys.stdlib_module_names) - set(known))
    names = {name for name in free if name in known or not hasattr(builtins, name)} - set(modules)
    return "".join(f"import {module}\n" for module in modules), tuple(sorted(names))


def _global_names(table: symtable.SymbolTable) -> Iterator[str]:
    """The global names that code refers to, builtins too."""
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _global_names(inner)


def _only_defines(body: Iterable[ast.stmt]) -> bool:
    """Whether statements only import, define and name literals: nothing is tested at their level."""
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return all(
        isinstance(s, definitions) or _is_docstring(s) or (isinstance(s, ast.Assign) and _is_literal(s.value))
        for s in body
    )


def _is_idle(statement: ast.stmt) -> bool:
    """`pass`, a docstring, or HumanEval's `assert True, "This prints if this assert fails"`."""
    match statement:
        case ast.Pass() | ast.Assert(ast.Constant(True)):
            return True
    return _is_docstring(statement)


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _parsed(source: str, place: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{place} does not parse: {str(error) or type(error).__name__}: {source[:80]!r}") from None


def _text(reference: Mapping[str, object], key: str) -> str:
    value = reference.get(key)
    if not isinstance(value, str):
        raise UserError(f"{key} must be text, got {value!r}")
    return value


def _name(reference: Mapping[str, object], key: str) -> str:
    name = _text(reference, key)
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"{key} must be the name of a function, got {name!r}")
    return name


def _list(reference: Mapping[str, object], key: str) -> list[object]:
    value = reference.get(key)
    if not isinstance(value, list | tuple):
        raise UserError(f"{key} must be a list, got {value!r}")
    if not value:
        raise UserError(f"{key} is empty: a program without tests has no verdict")
    return list(value)
