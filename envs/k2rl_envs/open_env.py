"""Open-ended tasks from the rows of a data file: no verifier, responses are compared with each other by rubrics.

envs.open: {id: open, args: {data: biggen.jsonl}}
envs.mine: {id: open, args: {data: asks.jsonl, fields: {prompt: ask, rubric: wanted}, rubrics: [core, ours.yaml]}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np

from k2rl import schemas
from k2rl.env import SingleTurnEnv
from k2rl.errors import UserError
from k2rl.rows import TEST_SHARE, Row, shuffled
from k2rl.rubrics import resolve
from k2rl.types import Split, Task, Verdict
from k2rl_envs.text_corruptions import corruptions

LEVELS = tuple(f"score{n}_description" for n in range(1, 6))


class OpenEnv(SingleTurnEnv):
    """Prompts whose responses only a judge can tell apart.

    Args:
        data: a file of rows, or `hf:REPO[:CONFIG][@SPLIT]`; see `k2rl/records.py`.
        test_data: test rows; without it, `test_share` of the rows of `data` are the test split.
        fields: which column is the prompt and (optional) the system prompt, a reference answer, the rubric; by default
            told from the columns, by the `open` schemas of `k2rl/_assets/schemas.yaml`.
        rubrics: what to judge by in every task, beside what its row asks for: see docs/rubrics.md.
        test_share: the share of the rows held out for testing; default 0.1.

    A row's rubric is a text, a list of texts or of names of rubrics, or BiGGen's criterion with five levels.

    Raises:
        UserError: data or rubrics that can't be used, or a row that has nothing to be judged by.
    """

    budget: ClassVar[int] = 1024
    open_ended: ClassVar[bool] = True
    rubrics: ClassVar[tuple[str, ...]] = ("core", "prescriptive", "uncertainty")
    row_kind: ClassVar[str] = "open"

    def __init__(
        self,
        data: str,
        test_data: str | None = None,
        fields: Mapping[str, str] | None = None,
        rubrics: Sequence[str] | None = None,
        test_share: float = TEST_SHARE,
    ) -> None:
        self.common = self.rubrics if rubrics is None else (rubrics,) if isinstance(rubrics, str) else tuple(rubrics)
        if wrong := [item for item in self.common if not isinstance(item, str)]:
            raise UserError(f"rubrics holds {wrong[0]!r}: it is a list of names, paths and texts")
        resolve(self.common)
        self.rows = schemas.load_splits("open", data, test_data, fields, test_share, same=_content)
        for rows in self.rows.values():  # A row that can't be used shows now, not in the middle of a run.
            for row in rows:
                self.row_task(row)

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return map(self.row_task, shuffled(self.rows[split], split, seed))

    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.pending() if response.strip() else Verdict.malformed("the response is empty")

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> dict[str, str]:
        return corruptions(response, draw)

    def row_task(self, row: Row) -> Task:
        """The task of a row of a data file. Raises `UserError` where it can't be used."""
        system, answer = _text(row, "system"), _text(row, "answer")
        rubrics = (*self.common, *_rubrics(row))
        if not rubrics:
            raise UserError(f"{row.place} has no rubric, and rubrics is empty: there is nothing to judge it by")
        prompt = ({"role": "system", "content": system}, {"role": "user", "content": row.prompt})
        return Task(prompt if system else row.prompt, answer, rubrics=rubrics, tags=("data",))


def _content(row: Row) -> object:
    return " ".join(row.prompt.split()), row.values.get("system")


def _text(row: Row, field: str) -> str | None:
    """An optional text; None where there is none, or only white space."""
    value = row.values.get(field)
    if value is not None and not isinstance(value, str):
        raise row.error(field, f"must be text, got {value!r}")
    return value if value and value.strip() else None


def _rubrics(row: Row) -> tuple[str, ...]:
    """What the row itself is to be judged by, as texts and names."""
    value = row.values.get("rubric")
    if isinstance(value, Mapping):
        return (_levels(row, value),)
    items = [value] if isinstance(value, str) else value or []
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise row.error("rubric", f"must be text, a list of texts, or a criterion with {LEVELS[0]} to 5, got {value!r}")
    asked = tuple(item for item in items if item.strip())
    try:
        resolve(asked)
    except UserError as error:
        raise row.error("rubric", str(error)) from None
    return asked


def _levels(row: Row, rubric: Mapping[str, object]) -> str:
    """A criterion and its five levels as one text, from the worst to the best."""
    texts = []
    for name in ("criteria", *LEVELS):
        text = rubric.get(name)
        if not isinstance(text, str) or not text.strip():
            raise row.error("rubric", f"a rubric of five levels has a text in {name}, got {text!r}")
        texts.append(" ".join(text.split()))
    criterion, *levels = texts
    return "\n".join(
        [f"{criterion} From the worst to the best:", *(f"{n}. {t}" for n, t in enumerate(levels, start=1))]
    )
