"""Rows of programming tasks in the forms that are about: MBPP, HumanEval, contests, and plain ones.

Of the fields of their schemas (`k2rl/_assets/schemas.yaml`, `code`), `prompt` is the task, `solution` its gold program,
and the rest are the tests in one of the forms of `k2rl_rewards.program_tests`.
"""

from __future__ import annotations

import ast
import builtins
import json
from collections.abc import Mapping
from typing import Any

from k2rl_rewards.program_tests import program_tests
from k2rl_rewards.program_text import defines

from k2rl.errors import UserError
from k2rl.rows import Row


def reference_and_solution(row: Row) -> tuple[dict[str, Any], str | None]:
    """The tests of a row in a form of `program_tests`, and its gold program, where there is one.

    Raises:
        UserError: they can't be used; names file, line and column.
    """
    found = {key: value for key, value in row.values.items() if key in ("tests", "test", "entry_point", "fn", "cases")}
    main = next(key for key in ("tests", "test", "fn", "io") if key in row.values)
    solution = row.values.get("solution")
    if solution is not None and not isinstance(solution, str):
        raise row.error("solution", f"a solution must be the text of a program, got {type(solution).__name__}")
    if str(row.values.get("setup") or "").strip():
        found["setup"] = row.values["setup"]
    if main == "io":
        found["io"] = _pairs(row)
    if main == "test" and isinstance(row.values["entry_point"], str) and defines(row.prompt, row.values["entry_point"]):
        found["prompt"] = row.prompt
        if solution is not None and not defines(solution, row.values["entry_point"]):
            solution = f"{row.prompt.rstrip()}\n{solution.strip(chr(10))}\n"
    if main == "tests" and solution is not None:
        found |= _names_of(solution)
    try:
        program_tests(found)
    except UserError as error:
        raise row.error(main, str(error)) from None
    return found, solution


def examples(reference: Mapping[str, Any], count: int) -> list[str]:
    """The first `count` tests as a prompt shows them."""
    if "tests" in reference:
        return [str(line).strip() for line in reference["tests"][:count]]
    if "cases" in reference:
        calls = [(", ".join(map(repr, args)), repr(expected)) for args, expected in reference["cases"][:count]]
        return [f"assert {reference['fn']}({args}) == {expected}" for args, expected in calls]
    if "io" in reference:
        return [
            f"input:\n{pair['stdin'].strip()}\noutput:\n{pair['stdout'].strip()}" for pair in reference["io"][:count]
        ]
    return [str(reference["test"]).strip()] if count else []


def _names_of(solution: str) -> dict[str, list[str]]:
    """What a gold program defines of Python's builtin names: where tests use these, they mean the program's."""
    try:
        body = ast.parse(solution).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    names = [s.name for s in body if isinstance(s, ast.FunctionDef | ast.ClassDef) and hasattr(builtins, s.name)]
    return {"fns": sorted(set(names))} if names else {}


def _pairs(row: Row) -> list[dict[str, Any]]:
    """Inputs and outputs from `{input: {stdin}, output: {stdout}}`, `{input, output}` or `{stdin, stdout}`, as a list
    or its JSON."""
    given = row.values["io"]
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise row.error("io", f"neither a list nor JSON: {error}") from None
    if not isinstance(given, list):
        raise row.error("io", f"must be a list of inputs and outputs, got {type(given).__name__}")
    found = []
    for number, pair in enumerate(given):
        if not isinstance(pair, Mapping):
            raise row.error("io", f"[{number}] must hold an input and an output, got {type(pair).__name__}")
        read, printed = pair.get("stdin", pair.get("input")), pair.get("stdout", pair.get("output"))
        read = read.get("stdin") if isinstance(read, Mapping) else read
        printed = printed.get("stdout") if isinstance(printed, Mapping) else printed
        found.append({"stdin": read, "stdout": printed})
    return found
