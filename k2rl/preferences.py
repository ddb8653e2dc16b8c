"""Rows of responses of which it is known which are right, to measure a judge on, and verdicts recorded on them.

The form of a row is known by its columns:

    {"id", "prompt", "response_a", "response_b", "label": "A" | "B"}
    {"input", "output_1", "output_2", "label": 1 | 2}                              LLMBar
    {"question", "response_A", "response_B", "label": "A>B" | "B>A"}               JudgeBench
    {"prompt", "chosen": text, "rejected": text}                                   RewardBench
    {"prompt", "chosen": [text, …], "rejected": [text, …]}                         best of n: RewardBench 2

A prompt is a text or a list of messages. A `subset` (or `category`, or `source`) tells groups of rows apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from k2rl import rng
from k2rl.critic.records import Judgement
from k2rl.errors import UserError
from k2rl.records import json_lines, records
from k2rl.rows import mapping
from k2rl.types import Message

_PROMPTS = ("prompt", "question", "input", "instruction")
_PAIRS = (("response_a", "response_b"), ("response_A", "response_B"), ("output_1", "output_2"))
_IDS = ("id", "pair_id")
_SUBSETS = ("subset", "category", "source")
_LABELS = {"A": True, "B": False, "A>B": True, "B>A": False, "1": True, "2": False}
_FIRST = {"first": 1.0, "second": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Row:
    """A prompt with two or more responses, of which at least one is right and one is not.

    `labelled` says that the row itself names one response A and one B; where it has chosen and rejected ones, the
    chosen come first in `responses`.
    """

    id: str
    place: str
    messages: tuple[Message, ...]
    responses: tuple[str, ...]
    right: tuple[bool, ...]
    subset: str | None
    labelled: bool
    best_of_n: bool

    @property
    def prompt(self) -> str:
        """The conversation as one text."""
        return "\n\n".join(str(m["content"]) for m in self.messages)


@dataclass(frozen=True)
class Contest:
    """Two responses of a row, by their numbers, to be compared; A is better where `label`, None if both are alike."""

    row: Row
    a: int
    b: int

    @property
    def id(self) -> str:
        low, high = sorted((self.a, self.b))
        return f"{self.row.id}/{low}-{high}" if self.row.best_of_n else self.row.id

    @property
    def swapped(self) -> bool:
        """Whether A is the row's later response."""
        return self.a > self.b

    @property
    def label(self) -> bool | None:
        right_a, right_b = self.row.right[self.a], self.row.right[self.b]
        return right_a if right_a != right_b else None

    @property
    def responses(self) -> tuple[str, str]:
        return self.row.responses[self.a], self.row.responses[self.b]


def read(data: str | Path) -> list[Row]:
    """All rows of a file or data set.

    Raises:
        UserError: as `records`; a row of no known form, or with a value that can't be: place and field named.
    """
    return [_row(n, place, mapping(place, record)) for n, (place, record) in enumerate(records(data), start=1)]


def contests(rows: Sequence[Row]) -> list[Contest]:
    """Every two responses of every row.

    Which of a chosen and a rejected one is A is decided by a hash of their texts: if A were always the better one,
    no AUROC would be defined.
    """
    found = []
    for row in rows:
        for a, b in combinations(range(len(row.responses)), 2):
            key = rng.key("label", row.prompt, row.responses[a], row.responses[b])
            swap = not row.labelled and row.right[a] != row.right[b] and key & 1
            found.append(Contest(row, b, a) if swap else Contest(row, a, b))
    return found


# --- rows ------------------------------------------------------------------------------------------------------


def _row(number: int, place: str, record: Mapping[str, Any]) -> Row:
    prompt = _column(record, _PROMPTS)
    pair = next((names for names in _PAIRS if all(_has(record, name) for name in names)), None)
    listed = _has(record, "chosen") and _has(record, "rejected")
    if prompt is None or not (pair or listed):
        raise UserError(
            f"{place}: a row has a prompt (or question, input), and response_a, response_b and label, or chosen and "
            f"rejected; this one has {', '.join(map(str, record)) or 'nothing'}"
        )
    best_of_n = False
    if pair:
        responses = tuple(_text(place, name, record[name]) for name in pair)
        label = _label(place, record)
        right: tuple[bool, ...] = (label, not label)
    else:
        chosen, rejected = (_texts(place, name, record[name]) for name in ("chosen", "rejected"))
        responses, right = (*chosen, *rejected), (True,) * len(chosen) + (False,) * len(rejected)
        best_of_n = any(isinstance(record[name], list) for name in ("chosen", "rejected"))
    identity, subset = _column(record, _IDS), _column(record, _SUBSETS)
    return Row(
        id=str(number if identity is None else record[identity]),
        place=place,
        messages=_messages(place, prompt, record[prompt]),
        responses=responses,
        right=right,
        subset=None if subset is None else str(record[subset]),
        labelled=bool(pair),
        best_of_n=best_of_n,
    )


def _has(record: Mapping[str, Any], name: str) -> bool:
    return record.get(name) is not None


def _column(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if _has(record, name)), None)


def _text(place: str, name: str, value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"{place}, field {name!r}: must be text, got {value!r:.60}")
    return value


def _texts(place: str, name: str, value: object) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise UserError(f"{place}, field {name!r}: must be a text or a list of at least one, got an empty list")
    return tuple(_text(place, name, v) for v in values)


def _label(place: str, record: Mapping[str, Any]) -> bool:
    label = record.get("label")
    if isinstance(label, bool) or str(label) not in _LABELS:
        raise UserError(f"{place}, field 'label': must be A or B (or 1 or 2, A>B or B>A), got {label!r:.60}")
    return _LABELS[str(label)]


def _messages(place: str, name: str, value: object) -> tuple[Message, ...]:
    if isinstance(value, str) and value.strip():
        return ({"role": "user", "content": value},)
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise UserError(f"{place}, field {name!r}: must be a text, or messages with role and content, got {value!r:.60}")


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(name), str) for name in ("role", "content"))


# --- recorded verdicts -----------------------------------------------------------------------------------------


def read_recorded(path: Path, asked: Sequence[Contest]) -> list[Judgement | None]:
    """A recorded judgement per contest; None where the verdict of an order is null: it was given, and unreadable.

    The order `AB` showed the row's earlier response first: response_a, output_1, or the one that is chosen.

    Raises:
        UserError: a line that is no verdict, an id that is of no contest or of several, an order that is missing or
            there twice: file and line named.
    """
    known: dict[str, Contest] = {}
    for contest in asked:
        if contest.id in known:
            raise UserError(f"{contest.row.place}: the id {contest.id!r} is also that of {known[contest.id].row.place}")
        known[contest.id] = contest
    found: dict[tuple[str, str], tuple[int, float | None]] = {}
    for line, key, p_first in _recorded_lines(path):
        if key[0] not in known:
            raise UserError(f"{path}, line {line}: no pair has the id {key[0]!r}")
        if key in found:
            raise UserError(f"{path}, line {line}: {key[0]!r} in order {key[1]} is already on line {found[key][0]}")
        found[key] = line, p_first
    return [_joined(path, contest, found) for contest in asked]


def _joined(
    path: Path, contest: Contest, found: Mapping[tuple[str, str], tuple[int, float | None]]
) -> Judgement | None:
    orders = [found.get((contest.id, order)) for order in ("AB", "BA")]
    if None in orders:
        given = next((f"line {line[0]} has only the other order",) for line in orders if line) if any(orders) else None
        where = given[0] if given else f"no line is about it; it is {contest.row.place}"
        raise UserError(f"{path}: {contest.id!r} lacks order {'AB' if orders[0] is None else 'BA'}: {where}")
    (_, ab), (_, ba) = (order for order in orders if order is not None)
    if ab is None or ba is None:
        return None
    # As probabilities that the earlier response is better, then that A is.
    return Judgement(ba, 1 - ab) if contest.swapped else Judgement(ab, 1 - ba)


def _recorded_lines(path: Path) -> Iterator[tuple[int, tuple[str, str], float | None]]:
    """Line number, (id, order) and the probability that the response shown first is better."""
    if not path.is_file():
        raise UserError(f"--recorded {path}: no such file; give a JSONL of verdicts")
    for line, record in json_lines(path):
        place = f"{path}, line {line}"
        record = mapping(place, record)
        if not isinstance(record.get("id"), str | int) or record.get("order") not in ("AB", "BA"):
            raise UserError(f"{place}: a verdict has an id and an order, AB or BA, got {_shown(record)}")
        if ("p_first" in record) == ("verdict" in record):
            raise UserError(f"{place}: a verdict has p_first or verdict, one of them, got {_shown(record)}")
        yield line, (str(record["id"]), record["order"]), _p_first(place, record)


def _p_first(place: str, record: Mapping[str, Any]) -> float | None:
    if "verdict" in record:
        verdict = record["verdict"]
        if verdict is not None and (not isinstance(verdict, str) or verdict not in _FIRST):
            raise UserError(f"{place}: verdict must be first, second, tie or null, got {verdict!r:.60}")
        return None if verdict is None else _FIRST[verdict]
    p = record["p_first"]
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0.0 <= p <= 1.0:
        raise UserError(f"{place}: p_first must be a number from 0 to 1, got {p!r:.60}")
    return float(p)


def _shown(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r:.40}" for name, value in record.items()) or "nothing"
