"""What `k2rl data` does with a file of rows: look at it, drop duplicates, tag with pass rates, filter."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from k2rl import difficulty, plugins, schemas
from k2rl.duplicates import Twin, twins
from k2rl.errors import UserError, did_you_mean
from k2rl.rows import Row, row_of
from k2rl.schemas import ReadsRows, Schema
from k2rl.tables import Table, fitting, short
from k2rl.types import content_hash

RATE = "pass_rate"
"""The column that `tag` writes and `filter` reads."""


def inspect(table: Table, examples: int, tokens: Callable[[str], int] | None) -> dict[str, Any]:
    """Columns with what they hold, suggested field maps, lengths, duplicates, examples."""
    names = list(dict.fromkeys(name for record in table.records for name in record))
    found = fitting(table.source)
    report: dict[str, Any] = {
        "file": table.source,
        "rows": len(table.records),
        "columns": {name: _column([r[name] for r in table.records if r.get(name) is not None]) for name in names},
        "schemas": {kind: {"name": s.name, "fields": dict(s.fields)} for kind, s in found.items()},
        "examples": [dict(r) for r in table.records[:examples]],
    }
    if table.schema is not None:
        prompts = [str(row.prompt) for row in table.rows()]
        counts = Counter(twin.how for twin in twins(prompts))
        report["prompts"] = {
            "column": table.schema.fields["prompt"],
            "characters": spread([len(p) for p in prompts]),
            **({"tokens": spread([tokens(p) for p in prompts])} if tokens else {}),
            "duplicates": {"exact": counts["exact"], "normalised": counts["normalised"]},
        }
    return report


def _column(values: Sequence[Any]) -> dict[str, Any]:
    kinds = Counter(type(v).__name__ for v in values)
    found: dict[str, Any] = {"filled": len(values), "types": dict(kinds)}
    found["distinct"] = len({content_hash(repr(v)) for v in values})
    if set(kinds) == {"str"}:
        found["characters"] = spread([len(v) for v in values])
    elif kinds and set(kinds) <= {"int", "float"}:
        found["values"] = spread(values)
    return found


def spread(values: Sequence[float]) -> dict[str, float]:
    """The least, the middle and the greatest of them."""
    return {"min": min(values), "median": median(values), "max": max(values)}


@dataclass(frozen=True)
class Deduplicated:
    """What is left, and why the rest is not: twins among the rows, and twins in another file."""

    kept: list[Mapping[str, Any]]
    twins: list[Twin]
    contaminated: list[Twin]
    report: dict[str, Any]


def dedup(table: Table, against: Table | None, near: float | None) -> Deduplicated:
    """Keep the first of rows that are the same, and none that is also in `against`.

    Rows are the same if their prompts are, and whatever else their schema requires but for the answer: tests, names.
    """
    rows, held = table.rows(), against.rows() if against is not None else []
    if against is not None and table.schema and against.schema and _beside(table.schema) != _beside(against.schema):
        raise UserError(f"{table.source} ({table.schema}) and {against.source} ({against.schema}) can't be compared")
    everything = [*held, *rows]
    beside = [_beside_values(r, table.schema) for r in everything]
    found = twins([r.prompt for r in everything], beside, near, known=len(held))
    contaminated = [t for t in found if t.of < len(held)]
    own = [replace(t, at=t.at - len(held), of=t.of - len(held)) for t in found if t.of >= len(held)]
    gone = {t.at - len(held) for t in found}
    differs = sum(rows[t.at].values.get("answer") != rows[t.of].values.get("answer") for t in own)
    report: dict[str, Any] = {
        "file": table.source,
        "prompt": table.schema.fields["prompt"] if table.schema else None,
        "rows": len(rows),
        "kept": len(rows) - len(gone),
        "duplicates": {how: sum(t.how == how for t in own) for how in ("exact", "normalised", "near")},
        "answer_differs": differs,
        "pairs": [_pair(rows[t.at], rows[t.of], t) for t in own],
    }
    if against is not None:
        report["against"] = {
            "file": against.source,
            "rows": len(held),
            "contaminated": {how: sum(t.how == how for t in contaminated) for how in ("exact", "normalised", "near")},
            "pairs": [_pair(everything[t.at], everything[t.of], t) for t in contaminated],
        }
    return Deduplicated([r for n, r in enumerate(table.records) if n not in gone], own, contaminated, report)


def _beside(schema: Schema) -> list[str]:
    return sorted(schema.required.keys() - {"prompt", "answer"})


def _beside_values(row: Row, schema: Schema | None) -> str | None:
    names = _beside(schema) if schema else []
    return content_hash(*[repr(row.values[name]) for name in names]) if names else None


def _pair(row: Row, other: Row, twin: Twin) -> dict[str, Any]:
    return {"row": short(row.place), "of": short(other.place), "how": twin.how, "similarity": round(twin.similarity, 4)}


def tag(table: Table, measured: Path, env: str | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows with their pass rates (None where not measured) in a column `pass_rate`, and a report.

    Raises:
        UserError: the file measures several environments and `env` names none, one that reads no rows, or no row.
    """
    spec, name = _measured_env(measured, env)
    rates = difficulty.load(measured, name)
    made = row_reader(plugins.make_env(spec["id"], spec["args"]), spec["id"])
    args = spec["args"]
    schema = schemas.detect(made.row_kind, table.source, args.get("fields"), args.get("format"))
    tagged, known = [], 0
    for place, record in zip(table.places, table.records, strict=True):
        task = replace(made.row_task(row_of(place, record, schema.fields, schema.optional)), env=name)
        rate = rates[task.id].rate if task.id in rates else None
        known += rate is not None
        tagged.append({**record, RATE: rate})
    if not known:
        raise UserError(
            f"none of the {len(tagged)} rows of {table.source} is among the {len(rates)} tasks that {measured} "
            f"measures of env {name}: tag the rows that were measured"
        )
    return tagged, {"file": table.source, "env": name, "rows": len(tagged), "tagged": known}


def _measured_env(path: Path, env: str | None) -> tuple[dict[str, Any], str]:
    """The environment of a measured file, as `k2rl measure` wrote it down."""
    report = difficulty.report_of(path, f"--measured {path}")
    names = list(report["envs"])
    if env is None and len(names) != 1:
        raise UserError(f"{path} measures the environments {', '.join(names)}: say which with --env")
    name = env or names[0]
    if name not in names:
        raise UserError(f"{path} measures no env {name}{did_you_mean(name, names)}: it has {', '.join(names)}")
    found = report["envs"][name]
    if "id" not in found:
        raise UserError(f"{path} does not say how env {name} was made: make it with `k2rl measure RECIPE`")
    return found, name


def row_reader(env: object, name: str) -> ReadsRows:
    """The environment, if it makes tasks of rows. Raises `UserError` if not."""
    if not isinstance(env, ReadsRows):
        raise UserError(f"env {name} reads no rows: it needs row_kind and row_task(row), as k2rl_envs.math_env has")
    return env


def keep(
    table: Table,
    *,
    pass_rate: tuple[float, float] | None = None,
    where: Mapping[str, str] | None = None,
    characters: tuple[int | None, int | None] = (None, None),
    most_tokens: int | None = None,
    tokens: Callable[[str], int] | None = None,
) -> tuple[list[Mapping[str, Any]], dict[str, int]]:
    """The rows that pass every test, and how many each test in turn left out.

    Raises:
        UserError: a column that no row has, a pass rate that is no number, or nothing is left.
    """
    left: dict[str, int] = {}
    kept = list(range(len(table.records)))

    def only(name: str, test: Callable[[int], bool]) -> None:
        nonlocal kept
        passing = [n for n in kept if test(n)]
        left[name] = len(kept) - len(passing)
        kept = passing

    names = {name for record in table.records for name in record}
    for column in [*(where or {}), *([RATE] if pass_rate else [])]:
        if column not in names:
            hint = "; `k2rl data tag` writes it" if column == RATE else ""
            raise UserError(f"{table.source} has no column {column!r}{did_you_mean(column, names)}{hint}")
    for column, value in (where or {}).items():
        only(f"{column}={value}", lambda n, c=column, v=value: _text(table.records[n].get(c)) == v)  # type: ignore[misc]
    if pass_rate:
        only(RATE, lambda n: _within(table.records[n].get(RATE), pass_rate, table.places[n]))
    low, high = characters
    prompts = [row.prompt for row in table.rows()] if (low, high, most_tokens) != (None, None, None) else []
    if low is not None:
        only("min_chars", lambda n: len(prompts[n]) >= low)
    if high is not None:
        only("max_chars", lambda n: len(prompts[n]) <= high)
    if most_tokens is not None and tokens is not None:
        only("max_tokens", lambda n: tokens(prompts[n]) <= most_tokens)
    if not kept:
        raise UserError(f"none of the {len(table.records)} rows of {table.source} is left: loosen the filter")
    return [table.records[n] for n in kept], left


def _text(value: object) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _within(rate: object, band: tuple[float, float], place: str) -> bool:
    if rate is None:
        return False
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise UserError(f"{place}, field {RATE!r}: a pass rate is a number, got {rate!r}")
    return band[0] <= rate <= band[1]
