"""Logic games with a checkable answer.

    envs.logic: {id: logic, args: {game: countdown, level: [2, 3]}}
    envs.logic: {id: logic, args: {game: "24"}}
    envs.logic: {id: logic, args: {game: sudoku, level: {1: 0.7, 2: 0.3}}}
    envs.logic: {id: logic, args: {game: knights, data: 3ppl.parquet}}
    envs.logic: {id: logic, args: {game: "reasoning_gym:sudoku", config: {min_empty: 20, max_empty: 30}}}

Each game is a small class with `tasks`, `verify` and `gold`; `GAMES` is the table of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from k2rl.env import SingleTurnEnv
from k2rl.errors import UserError, did_you_mean
from k2rl.rows import Row
from k2rl.types import Split, Task, Verdict
from k2rl_envs import knights
from k2rl_envs.arguments import refuse
from k2rl_envs.countdown import CountdownGame
from k2rl_envs.cross_table import CrossTableGame
from k2rl_envs.cryptarithm import CryptarithmGame
from k2rl_envs.levels import Levels
from k2rl_envs.morse import MorseGame
from k2rl_envs.multi_hop import MultiHopGame
from k2rl_envs.reasoning_gym_tasks import ReasoningGym
from k2rl_envs.sudoku import SudokuGame
from k2rl_envs.twenty_four import TwentyFour


class Game(Protocol):
    def tasks(self, split: Split, seed: int) -> Iterable[Task]: ...

    def verify(self, task: Task, response: str) -> Verdict: ...

    def gold(self, task: Task) -> str | None: ...


@dataclass(frozen=True)
class Entry:
    """A game: what makes it, and which of `LogicEnv`'s arguments have an effect on it besides `instruction`.

    `make` gets those of them that are set, by name, and first what follows the colon in the game's name.
    """

    make: Callable[..., Game]
    arguments: tuple[str, ...] = ()


GAMES: dict[str, Entry] = {
    "countdown": Entry(CountdownGame, ("level",)),
    "24": Entry(TwentyFour, ("level",)),
    "sudoku": Entry(SudokuGame, ("level",)),
    "cryptarithm": Entry(CryptarithmGame, ("level",)),
    "morse": Entry(MorseGame, ("level",)),
    "multi_hop": Entry(MultiHopGame, ("level",)),
    "cross_table": Entry(CrossTableGame, ("level",)),
    "knights": Entry(knights.knights_and_knaves, ("level", "data", "test_data", "fields", "test_share")),
    "reasoning_gym:<data set>": Entry(ReasoningGym, ("config",)),
}


class LogicEnv(SingleTurnEnv):
    """Logic puzzles. What the levels of a game are is told at the top of its file.

    | game          | levels (default)  | what is asked                                   | the answer                |
    |---------------|-------------------|-------------------------------------------------|---------------------------|
    | `countdown`   | 1-5 (3)           | make a target of two to four numbers            | `#### (3+4)*2`            |
    | `24`          | 1-3 (3)           | make 24 of three or four numbers                | `#### (3+3)*4`            |
    | `sudoku`      | 1-5 (2)           | fill a grid, 4 x 4 to 9 x 9                     | `####`, the rows below it |
    | `cryptarithm` | 1-5 (2)           | digits for the letters of a sum                 | `#### A=1, B=2`           |
    | `morse`       | 1-5 (2)           | decode three letters, up to four words          | `#### PINE CABIN`         |
    | `multi_hop`   | 1-5 (2)           | follow facts to two people, add what they own   | `#### 109`                |
    | `cross_table` | 1-5 (2)           | look up in two or three tables, add up          | `#### 942`                |
    | `knights`     | 1-5 (2), or rows  | who tells the truth?                            | `#### Ann is a knight, …` |
    | `reasoning_gym:<data set>` | its `config` | over a hundred data sets of that package | `<answer>…</answer>`      |

    Where several answers are right (countdown, 24, Sudoku, cryptarithm), each of them is. There is no partial credit.
    The answer is read where it is marked, and only there: `k2rl_rewards.puzzle.marked_answer`; the file of
    reasoning_gym says its own rule.

    Args:
        game: a name of the table.
        level: a level, a list of levels (equal shares) or level -> share.
        data, test_data, fields, test_share: for knights: a file of puzzles instead of generated ones, as in
            `MathEnv`; the fields are prompt, names and solution.
        config: for reasoning_gym: the data set's own options, without seed and size.
        instruction: a line appended to every prompt; None: the game's own; "" appends nothing.

    Raises:
        UserError: an unknown game, level, data set or option, an argument without effect, unusable data.
    """

    budget: ClassVar[int] = 512
    row_kind: ClassVar[str] = "knights"

    def __init__(
        self,
        game: str | int = "countdown",
        level: Levels | None = None,
        data: str | None = None,
        test_data: str | None = None,
        fields: Mapping[str, str] | None = None,
        test_share: float | None = None,
        config: Mapping[str, Any] | None = None,
        instruction: str | None = None,
    ) -> None:
        name, _, data_set = str(game).partition(":")
        entry = GAMES.get(f"{name}:<data set>" if data_set else name)
        if entry is None:
            raise UserError(f"unknown game {game!r}{did_you_mean(str(game), GAMES)}: allowed are {', '.join(GAMES)}")
        given = {
            "level": level,
            "data": data,
            "test_data": test_data,
            "fields": fields,
            "test_share": test_share,
            "config": config,
        }
        refuse(f"game {game}", **{k: v for k, v in given.items() if k not in entry.arguments})
        self.name, self.instruction = name, instruction
        used = {k: v for k, v in given.items() if v is not None}
        self.game = entry.make(*([data_set] if data_set else []), **used, instruction=instruction)

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return self.game.tasks(split, seed)

    def row_task(self, row: Row) -> Task:
        """The puzzle of a row of a data file. Raises `UserError` where it is none, or the game has no rows."""
        if self.name != "knights":
            raise UserError(f"game {self.name} reads no rows: knights does (args game=knights)")
        return knights.row_task(row, knights.INSTRUCTION if self.instruction is None else self.instruction)

    def verify(self, task: Task, response: str) -> Verdict:
        return self.game.verify(task, response)

    def gold(self, task: Task) -> str | None:
        return self.game.gold(task)

    def sample_gold(self, task: Task, draw: np.random.Generator) -> str | None:
        return self.game.sample_gold(task, draw) if isinstance(self.game, CountdownGame) else self.game.gold(task)

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Mapping[str, str]:
        return self.game.corrupt(task, response, draw) if isinstance(self.game, CountdownGame | TwentyFour) else {}
