"""Whether a grid is a right completion of a Sudoku: any completion that keeps the rules and the givens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from k2rl.types import Verdict
from k2rl_rewards.math_answer import NoAnswerError
from k2rl_rewards.puzzle import marked_answer

_SEPARATORS = re.compile(r"[\s|+\-,;`]+")


class Sudoku:
    """The reward of a Sudoku; the reference is `{"grid": [[int, …], …], "box": [rows, columns]}`, 0 for an empty cell.

    The answer (`marked_answer`) is the whole grid, row by row: one digit per cell; spaces, new lines and the signs
    `| + - , ;` between them mean nothing. Malformed: anything else in it, or another number of digits. Wrong: a given
    is changed, or a digit is missing from a row, column or box.
    """

    def __call__(self, response: str, reference: Mapping[str, object]) -> Verdict:
        grid = cast(Sequence[Sequence[int]], reference["grid"])
        rows, columns = cast(Sequence[int], reference["box"])
        size = len(grid)
        try:
            answer = _SEPARATORS.sub("", marked_answer(response))
        except NoAnswerError as error:
            return Verdict.malformed(str(error))
        if not re.fullmatch(f"[1-{size}]*", answer):
            return Verdict.malformed(f"the grid holds something other than the digits 1 to {size}")
        if len(answer) != size * size:
            return Verdict.malformed(f"the grid has {len(answer)} digits, not {size * size}")
        filled = [[int(d) for d in answer[i * size : (i + 1) * size]] for i in range(size)]
        for i, row in enumerate(grid):
            for j, given in enumerate(row):
                if given and filled[i][j] != given:
                    return Verdict.of(False, f"row {i + 1}, column {j + 1} is {filled[i][j]}, given {given}")
        for name, cells in units(size, (rows, columns)):
            missing = set(range(1, size + 1)) - {filled[i][j] for i, j in cells}
            if missing:
                return Verdict.of(False, f"{name} has no {min(missing)}")
        return Verdict.of(True)


def units(size: int, box: tuple[int, int]) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Every row, column and box by name, with its cells as (row, column) from 0."""
    rows, columns = box
    for i in range(size):
        yield f"row {i + 1}", [(i, j) for j in range(size)]
        yield f"column {i + 1}", [(j, i) for j in range(size)]
    for top in range(0, size, rows):
        for left in range(0, size, columns):
            cells = [(top + i, left + j) for i in range(rows) for j in range(columns)]
            yield f"the box at row {top + 1}, column {left + 1}", cells
