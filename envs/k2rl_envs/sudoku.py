"""Generated Sudokus, each with exactly one solution.

Levels (side of the grid, box, empty cells):

    1  4 x 4, boxes of 2 x 2, 4 empty
    2  4 x 4, boxes of 2 x 2, 9 empty
    3  6 x 6, boxes of 2 x 3, 16 empty
    4  9 x 9, boxes of 3 x 3, 25 empty
    5  9 x 9, boxes of 3 x 3, 45 empty
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from k2rl_rewards.sudoku import Sudoku, units

from k2rl_envs.generated import GeneratedGame, Puzzle

Grid = list[list[int]]
Box = tuple[int, int]

LEVELS = {1: ((2, 2), 4), 2: ((2, 2), 9), 3: ((2, 3), 16), 4: ((3, 3), 25), 5: ((3, 3), 45)}


class SudokuGame(GeneratedGame):
    """Generated Sudokus; split by their solution, so that no training puzzle shares one with a test puzzle."""

    name = "sudoku"
    levels = LEVELS
    default_level = 2
    default_instruction = (
        'Think first. End with a line "####" and below it the whole filled grid, one row per line, '
        "digits separated by spaces, nothing else."
    )
    reward = Sudoku()

    def puzzle(self, level: int, draw: np.random.Generator) -> Puzzle | None:
        box, empty = self.levels[level]
        size = box[0] * box[1]
        blank = [[0] * size for _ in range(size)]
        solution = next(_solutions(blank, box, lambda: (draw.permutation(size) + 1).tolist()))
        grid = _dig(solution, box, empty, draw)
        if grid is None:
            return None
        question = (
            f"Fill every _ of this Sudoku, so that each row, each column and each box of {box[0]} rows and {box[1]} "
            f"columns holds each of 1 to {size} once:\n{_text(grid)}"
        )
        return Puzzle(question, _text(solution), solution, {"grid": grid, "box": list(box)})


def solutions(grid: Grid, box: Box) -> Iterator[Grid]:
    """Every completion of a grid, 0 for an empty cell; none where two givens clash."""
    size = len(grid)
    for _, cells in units(size, box):
        given = [grid[i][j] for i, j in cells if grid[i][j]]
        if len(set(given)) < len(given):
            return iter(())
    return _solutions([list(row) for row in grid], box, lambda: list(range(1, size + 1)))


def _solutions(grid: Grid, box: Box, order: Callable[[], list[int]]) -> Iterator[Grid]:
    """Backtracking on the empty cell with the fewest candidates, tried in the order that `order()` gives."""
    tightest = _tightest(grid, box)
    if tightest is None:
        yield [list(row) for row in grid]
        return
    i, j, candidates = tightest
    for value in order():
        if value in candidates:
            grid[i][j] = value
            yield from _solutions(grid, box, order)
    grid[i][j] = 0


def _tightest(grid: Grid, box: Box) -> tuple[int, int, set[int]] | None:
    """An empty cell with the fewest candidates, or the first with less than two, and them; None on a full grid."""
    peers, digits = _peers(len(grid), box), set(range(1, len(grid) + 1))
    best: tuple[int, int, set[int]] | None = None
    for i, row in enumerate(grid):
        for j, value in enumerate(row):
            if value == 0:
                candidates = digits - {grid[a][b] for a, b in peers[i][j]}
                if best is None or len(candidates) < len(best[2]):
                    best = (i, j, candidates)
                if len(candidates) < 2:
                    return best
    return best


@lru_cache(maxsize=8)
def _peers(size: int, box: Box) -> list[list[list[tuple[int, int]]]]:
    """For each cell, the other cells of its row, column and box."""
    found: list[list[set[tuple[int, int]]]] = [[set() for _ in range(size)] for _ in range(size)]
    for _, cells in units(size, box):
        for i, j in cells:
            found[i][j].update(cells)
    return [[sorted(found[i][j] - {(i, j)}) for j in range(size)] for i in range(size)]


def _dig(solution: Grid, box: Box, empty: int, draw: np.random.Generator) -> Grid | None:
    """The solution with cells emptied in random order as long as it stays the only one; None if too few can be."""
    size = len(solution)
    grid = [list(row) for row in solution]
    for cell in draw.permutation(size * size).tolist():
        i, j = divmod(cell, size)
        taken = {grid[a][b] for a, b in _peers(size, box)[i][j]}
        value = grid[i][j]
        if any(_completes(grid, box, i, j, other) for other in range(1, size + 1) if other not in taken | {value}):
            continue
        grid[i][j] = 0
        empty -= 1
        if empty == 0:
            return grid
    return None


def _completes(grid: Grid, box: Box, i: int, j: int, value: int) -> bool:
    """Whether the grid has a solution with this value in a cell."""
    trial = [list(row) for row in grid]
    trial[i][j] = value
    return next(solutions(trial, box), None) is not None


def _text(grid: Grid) -> str:
    return "\n".join(" ".join(str(v or "_") for v in row) for row in grid)
