"""Logic games with a checkable answer.

    envs.logic: {id: logic, args: {game: countdown, level: [2, 3]}}
    envs.logic: {id: logic, args: {game: "24"}}
    envs.logic: {id: logic, args: {game: knights, data: 3ppl.parquet}}
    envs.logic: {id: logic, args: {game: "reasoning_gym:sudoku", config: {min_empty: 20, max_empty: 30}}}

Each game is a small class with `tasks`, `verify` and `gold`; `LogicEnv` picks one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

from k2rl.env import SingleTurnEnv
from k2rl.errors import UserError, did_you_mean
from k2rl.types import Split, Task, Verdict
from k2rl_envs.arguments import refuse
from k2rl_envs.countdown import CountdownGame
from k2rl_envs.knights import Knights
from k2rl_envs.levels import Levels
from k2rl_envs.reasoning_gym_tasks import ReasoningGym
from k2rl_envs.twenty_four import TwentyFour

GAMES = ("countdown", "24", "knights", "reasoning_gym:<data set>")


class Game(Protocol):
    def tasks(self, split: Split, seed: int) -> Iterable[Task]: ...

    def verify(self, task: Task, response: str) -> Verdict: ...

    def gold(self, task: Task) -> str | None: ...


class LogicEnv(SingleTurnEnv):
    """Logic puzzles.

    Args:
        game: "countdown", "24", "knights" or "reasoning_gym:<data set>".
        level: for countdown: a level, a list of levels (equal shares) or level -> share; default 3.
        data, test_data, fields, test_share: for knights: a file of puzzles, as in `MathEnv`; the fields are
            prompt, names and solution.
        config: for reasoning_gym: the data set's own options, without seed and size.
        instruction: a line appended to every prompt; None: the game's own; "" appends nothing.

    Raises:
        UserError: an unknown game, level, data set or option, an argument without effect, unusable data.
    """

    budget: ClassVar[int] = 512

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
        rows = {"data": data, "test_data": test_data, "fields": fields, "test_share": test_share}
        if name != "countdown":
            refuse(f"game {game}", level=level)
        if name != "knights":
            refuse(f"game {game}", **rows)
        if name != "reasoning_gym":
            refuse(f"game {game}", config=config)
        self.game: Game
        if game == "countdown":
            self.game = CountdownGame(3 if level is None else level, instruction)
        elif str(game) == "24":
            self.game = TwentyFour(instruction)
        elif game == "knights":
            self.game = Knights(data, test_data, fields, test_share, instruction)
        elif data_set and name == "reasoning_gym":
            self.game = ReasoningGym(data_set, config or {}, instruction)
        else:
            raise UserError(f"unknown game {game!r}{did_you_mean(str(game), GAMES)}: allowed are {', '.join(GAMES)}")

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return self.game.tasks(split, seed)

    def verify(self, task: Task, response: str) -> Verdict:
        return self.game.verify(task, response)

    def gold(self, task: Task) -> str | None:
        return self.game.gold(task)
