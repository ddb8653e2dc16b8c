"""How far a verifier can be trusted: its verdicts against rows of which the right one is known.

A row is an object on a line of a JSONL file, one of two kinds:

    {"gold": "1/2", "prediction": "0.5", "expected": true}
    {"program": "def f(x): …", "tests": ["assert f(1) == 2"], "expected": "accept"}

`gold` is the reference's `answer`, or the whole reference where it is an object. A program may come with `fn` and
`cases`, with `io`, or with HumanEval's `test` and `entry_point` instead of `tests`; what stands beside it is the
reference. The verdict *accepts* a row if it is `correct`; a verdict without a score, or an exception of the reward, is
an error and agrees with nothing.

Predictions of evaluation data are often the bare answer, which a reward that looks for a marked final answer must
call malformed. So where a reward calls a prediction malformed and has a method `bare(answer, reference)`, as
`MathAnswer` does, that method decides.
"""

from __future__ import annotations

import ast
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from k2rl import plugins
from k2rl.errors import UserError, failed
from k2rl.intervals import wilson, wilson_count
from k2rl.progress import bar, console
from k2rl.protocols import Reward
from k2rl.records import json_lines
from k2rl.types import SCHEMA_VERSION, Status, Verdict

T = TypeVar("T")
R = TypeVar("R")

EXPECTED = {"accept": True, "reject": False}
_SILENT_S = 30.0


@dataclass(frozen=True)
class Row:
    """One row: what the reward is called with, and whether it should accept."""

    id: str
    line: int
    response: str
    reference: Mapping[str, Any]
    expected: bool
    is_program: bool


@dataclass(frozen=True)
class Judged:
    """A row and what the reward made of it."""

    row: Row
    verdict: Verdict

    @property
    def accepted(self) -> bool:
        return self.verdict.status is Status.CORRECT

    @property
    def agrees(self) -> bool:
        return self.verdict.scored and self.accepted == self.row.expected

    def to_json(self) -> dict[str, Any]:
        words = ("reject", "accept") if self.row.is_program else (False, True)
        return {
            "id": self.row.id,
            "line": self.row.line,
            "expected": words[self.row.expected],
            "got": words[self.accepted] if self.verdict.scored else None,
            "agrees": self.agrees,
            **self.verdict.to_json(),
        }


def evaluate(
    reward: str, data: Path, args: Mapping[str, Any] | None = None, *, workers: int | None = None, quiet: bool = False
) -> tuple[dict[str, Any], list[Judged]]:
    """The report behind `k2rl eval-rewards verifier`, and the verdict on every row, in the order of the file.

    Args:
        reward: a name, module:Class or file.py:Class.
        workers: threads, each with a reward of its own; default: twice the cores, 8 at most.

    Raises:
        UserError: an unusable file or row, a reward that can't be made, or one that the rows are not for.
    """
    rows = read_rows(data)
    local = threading.local()
    plugins.make_reward(reward, args)  # What is wrong with it shows before anything runs.

    def judge(row: Row) -> Judged:
        if not hasattr(local, "reward"):
            local.reward = plugins.make_reward(reward, args)
        try:
            return Judged(row, verdict_of(local.reward, row))
        except UserError as error:
            raise UserError(f"{data}, line {row.line}: {error}") from None

    start = time.perf_counter()
    judged = in_threads(judge, rows, lambda row: f"line {row.line}", workers, quiet)
    return _report(reward, data, judged, time.perf_counter() - start), judged


def verdict_of(reward: Reward, row: Row) -> Verdict:
    """The reward's verdict on a row, by the rules above.

    Raises:
        UserError: the reward itself refuses the row's reference.
    """

    def ask() -> Verdict:
        verdict = reward(row.response, row.reference)
        bare = getattr(reward, "bare", None)
        if bare is not None and not row.is_program and verdict.status is Status.MALFORMED:
            return bare(row.response.strip(), row.reference)  # type: ignore[no-any-return]
        return verdict

    return guarded(ask)


def guarded(ask: Callable[[], object]) -> Verdict:
    """The verdict that a reward is asked for; what else it does is a verdict of its failure.

    Raises:
        UserError: the reward's own.
    """
    try:
        verdict = ask()
    except UserError:
        raise
    except Exception as error:  # the boundary: whatever a reward does, the other rows are still judged
        return Verdict.failure(Status.VERIFIER_ERROR, str(failed("the reward", error)))
    if not isinstance(verdict, Verdict):
        return Verdict.failure(Status.VERIFIER_ERROR, f"the reward returned a {type(verdict).__name__}, not a Verdict")
    return verdict


def in_threads(
    ask: Callable[[T], R], items: Sequence[T], name: Callable[[T], str], workers: int | None, quiet: bool
) -> list[R]:
    """What `ask` makes of each item, in their order; `name` is what an item is called when it takes long.

    Raises whatever it does, at once.
    """
    with ThreadPoolExecutor(workers or min(8, 2 * (os.cpu_count() or 1)), thread_name_prefix="k2rl-reward") as pool:
        jobs = [pool.submit(ask, item) for item in items]
        try:
            _await(jobs, [name(item) for item in items], quiet)
            return [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _await(jobs: Sequence[Future[Any]], names: Sequence[str], quiet: bool) -> None:
    """Wait for all, show how far it is, stop at the first that raises, and say what is waited for if nothing moves."""
    finished: SimpleQueue[Future[Any]] = SimpleQueue()
    for job in jobs:
        job.add_done_callback(finished.put)
    done = 0
    with bar("judging", quiet) as progress:
        while done < len(jobs):
            try:
                finished.get(timeout=_SILENT_S).result()
            except Empty:
                running = [name for job, name in zip(jobs, names, strict=True) if job.running()]
                console.print(f"no verdict for {_SILENT_S:g} s; waiting for {', '.join(running)}", markup=False)
                continue
            done += 1
            progress(done, len(jobs))


def _report(reward: str, data: Path, judged: Sequence[Judged], wall_s: float) -> dict[str, Any]:
    n = len(judged)
    errors = sum(not j.verdict.scored for j in judged)
    wrongly = [j.row.expected for j in judged if j.verdict.scored and not j.agrees]
    negatives = sum(not j.row.expected for j in judged)
    agreement = (n - errors - len(wrongly)) / n
    return {
        "schema_version": SCHEMA_VERSION,
        "reward": reward,
        "data": str(data),
        "n": n,
        "agreement": agreement,
        "false_positive": wrongly.count(False),
        "false_negative": wrongly.count(True),
        "errors": errors,
        "per_second": n / wall_s,
        "ci95": {
            "agreement": wilson(agreement, n),
            "false_positive": wilson_count(wrongly.count(False), negatives),
            "false_negative": wilson_count(wrongly.count(True), n - negatives),
            "errors": wilson_count(errors, n),
        },
    }


# --- rows ------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """All rows of a file.

    Raises:
        UserError: no such file, an empty one, or a line that is no row: file and line named.
    """
    if not path.is_file():
        raise UserError(f"--data {path}: no such file; give a JSONL of rows")
    rows = []
    for number, record in json_lines(path):
        try:
            rows.append(_row(number, record))
        except _RowError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise UserError(f"{path} holds no rows")
    return rows


class _RowError(ValueError):
    """What is wrong with a row."""


def _row(number: int, data: object) -> Row:
    if not isinstance(data, dict):
        raise _RowError(f"a row is an object of fields, got {type(data).__name__}")
    if "expected" not in data:
        raise _RowError("no field 'expected': the right verdict, true or false (accept or reject for programs)")
    is_program = "program" in data
    response = _text(data, "program" if is_program else "prediction")
    reference = _tests(data) if is_program else _gold(data)
    expected = data["expected"]
    if is_program:
        if not isinstance(expected, str) or expected not in EXPECTED:
            raise _RowError(f"expected must be 'accept' or 'reject', got {expected!r}")
        expected = EXPECTED[expected]
    elif not isinstance(expected, bool):
        raise _RowError(f"expected must be true or false, got {expected!r}")
    return Row(str(data.get("id", number)), number, response, reference, expected, is_program)


def _text(data: Mapping[str, Any], name: str) -> str:
    """A field that is text, or (but for programs) a number."""
    if name not in data:
        raise _RowError(f"no field {name!r}: a row has gold and prediction, or program and tests; it has {_keys(data)}")
    value = data[name]
    number = isinstance(value, int | float) and not isinstance(value, bool) and name != "program"
    if not isinstance(value, str) and not number:
        raise _RowError(f"{name} must be text, got {type(value).__name__}")
    return str(value)


def _gold(data: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(gold := data.get("gold"), dict):
        return gold
    answer = _text(data, "gold")
    if not answer.strip():
        raise _RowError("gold is empty: give the right answer")
    return {"answer": answer}


def _tests(data: Mapping[str, Any]) -> dict[str, Any]:
    """All that stands beside the program, with its tests in one of the known forms."""
    forms = [form for form in _FORMS if form in data]
    if len(forms) != 1:
        raise _RowError(f"a program has one of {', '.join(_FORMS)}; this row has {_keys(data)}")
    for problem in _FORMS[forms[0]](data):
        raise _RowError(problem)
    return {name: value for name, value in data.items() if name not in ("id", "program", "expected")}


def _assert_problems(data: Mapping[str, Any]) -> Iterator[str]:
    for n, test in _listed(data, "tests"):
        yield from _source_problems(f"tests[{n}]", test)


def _check_problems(data: Mapping[str, Any]) -> Iterator[str]:
    yield from _source_problems("test", data["test"])


def _case_problems(data: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(data["fn"], str) or not data["fn"].isidentifier():
        yield f"fn must be the name of a function, got {data['fn']!r}"
    for n, case in _listed(data, "cases"):
        if not isinstance(case, list) or len(case) != 2 or not isinstance(case[0], list):
            yield f"cases[{n}] must be [[argument, …], expected], got {case!r:.60}"


def _io_problems(data: Mapping[str, Any]) -> Iterator[str]:
    for n, test in _listed(data, "io"):
        if not isinstance(test, dict) or not all(isinstance(test.get(name), str) for name in ("stdin", "stdout")):
            yield f"io[{n}] must have the texts stdin and stdout, got {test!r:.60}"


_FORMS = {"tests": _assert_problems, "test": _check_problems, "fn": _case_problems, "io": _io_problems}


def _listed(data: Mapping[str, Any], name: str) -> Iterator[tuple[int, Any]]:
    if not isinstance(data.get(name), list) or not data[name]:
        raise _RowError(f"{name} must be a list that is not empty, got {data.get(name)!r:.60}")
    yield from enumerate(data[name])


def _source_problems(name: str, source: object) -> Iterator[str]:
    if not isinstance(source, str):
        yield f"{name} must be Python source, got {source!r:.60}"
        return
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # what ast.parse is documented to raise
        yield f"{name} does not parse ({error}): {source!r:.80}"


def _keys(data: Mapping[str, Any]) -> str:
    return ", ".join(map(str, data)) or "nothing"
