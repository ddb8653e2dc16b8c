"""Logic games with a checkable answer.

    envs.logic: {id: logic, args: {game: countdown, level: [2, 3]}}
    envs.logic: {id: logic, args: {game: "24"}}
    envs.logic: {id: logic, args: {game: knights, data: 3ppl.parquet}}
    envs.logic: {id: logic, args: {game: "reasoning_gym:sudoku", config: {min_empty: 20, max_empty: 30}}}

Each game is a small class with `tasks`, `verify` and `gold`; `LogicEnv` picks one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from itertools import combinations_with_replacement, count, islice
from typing import Any, ClassVar, Protocol, cast

from k2rl_rewards.countdown import Countdown
from k2rl_rewards.knights import KnightsAndKnaves, statement
from k2rl_rewards.math_answer import GraderProcess, NoAnswerError, after_hashes, attributed, last_boxed

from k2rl import rng
from k2rl.env import SingleTurnEnv
from k2rl.errors import UserError, did_you_mean
from k2rl.types import Split, Task, Verdict, content_hash
from k2rl_envs import countdown
from k2rl_envs.math_env import Levels, field_map, level_shares, mixed, refuse, with_instruction
from k2rl_envs.rows import TEST_SHARE, Row, load_splits, shuffled

GAMES = ("countdown", "24", "knights", "reasoning_gym:<data set>")
COUNTDOWN_INSTRUCTION = (
    "Use every number exactly once, with + - * / and parentheses. "
    'Work step by step. End with a line "#### expression", where expression is the solution alone.'
)
KNIGHTS_INSTRUCTION = (
    'Work step by step. End with a line that starts with "####" and says of everyone whether they are a '
    'knight or a knave, in the form "#### (name) is a knight, (name) is a knave".'
)
GYM_INSTRUCTION = "Work step by step. Give the final answer between <answer> and </answer>."


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


# --- combine the numbers ---------------------------------------------------------------------------------


class CountdownGame:
    """Generated countdown puzzles; the gold answer searches aloud before it hits."""

    def __init__(self, level: Levels, instruction: str | None) -> None:
        self.shares = level_shares(level, countdown.LEVELS)
        self.instruction = COUNTDOWN_INSTRUCTION if instruction is None else instruction
        self.reward = Countdown()

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        streams = {n: map(partial(self._task, n), countdown.puzzles(n, split, seed)) for n in self.shares}
        return mixed(streams, self.shares, "countdown", split, seed)

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str | None:
        numbers, target = tuple(int(n) for n in task.reference["numbers"]), int(task.reference["target"])
        # Keyed by the puzzle alone, so that the text is the same under every name and instruction.
        key = content_hash("countdown", list(numbers), target)
        shown = countdown.demonstration(countdown.Puzzle(numbers, target), key)
        solution = None if shown else solve(numbers, target)
        return shown or (f"#### {solution}" if solution else None)

    def _task(self, level: int, puzzle: countdown.Puzzle) -> Task:
        reference = {"numbers": list(puzzle.numbers), "target": puzzle.target, "level": level}
        prompt = combine_prompt(puzzle.numbers, puzzle.target, self.instruction)
        return Task(prompt, reference=reference, budget=128, tags=("countdown", f"level-{level}"))


class TwentyFour:
    """Every solvable hand of four numbers from 1 to 13, once, in an order and arrangement fixed by the seed.

    Hands are split as countdown puzzles are, so that the same hand is never training here and test there.
    """

    def __init__(self, instruction: str | None) -> None:
        self.instruction = COUNTDOWN_INSTRUCTION if instruction is None else instruction
        self.reward = Countdown()

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        draw = rng.generator("24", split, seed)
        hands = list(combinations_with_replacement(range(1, 14), 4))
        for i in draw.permutation(len(hands)):
            hand = hands[int(i)]
            numbers = [hand[int(j)] for j in draw.permutation(4)]
            if rng.in_test_split("countdown", *hand, 24) == (split == "test") and solve(hand, 24):
                prompt = combine_prompt(numbers, 24, self.instruction)
                yield Task(prompt, reference={"numbers": numbers, "target": 24}, budget=128, tags=("24",))

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str | None:
        solution = solve(tuple(sorted(task.reference["numbers"])), 24)
        return f"#### {solution}" if solution else None


def combine_prompt(numbers: Sequence[int], target: int, instruction: str) -> str:
    return with_instruction(f"Use {' '.join(map(str, numbers))} to make {target}", instruction)


@lru_cache(maxsize=4_096)
def solve(numbers: tuple[int, ...], target: int) -> str | None:
    """An expression that uses each number once and makes the target, exactly; None if there is none."""
    hand, goal = tuple(sorted(numbers)), Fraction(target)
    if len(hand) == 1:
        return reachable(hand).get(goal)
    for left, right in _splits(hand):
        others = reachable(right)
        for a, first in reachable(left).items():
            # What the other part must make, for each way to join the two.
            wanted = [(goal - a, "{0}+{1}"), (a - goal, "{0}-{1}"), (goal + a, "{1}-{0}")]
            if a:
                wanted += [(goal / a, "{0}*{1}"), (goal * a, "{1}/{0}")]
            if a and goal:
                wanted.append((a / goal, "{0}/{1}"))
            if not a and not goal:
                wanted.append((next(iter(others)), "{0}*{1}"))
            for b, form in wanted:
                if b in others:
                    return form.format(first, others[b])
    return None


@lru_cache(maxsize=1_000)
def reachable(numbers: tuple[int, ...]) -> dict[Fraction, str]:
    """Every value that all of the (sorted) numbers can make, with an expression for it."""
    if len(numbers) == 1:
        return {Fraction(numbers[0]): str(numbers[0])}
    found: dict[Fraction, str] = {}
    for left, right in _splits(numbers):
        for a, first in reachable(left).items():
            for b, second in reachable(right).items():
                found.setdefault(a + b, f"({first}+{second})")
                found.setdefault(a * b, f"({first}*{second})")
                found.setdefault(a - b, f"({first}-{second})")
                found.setdefault(b - a, f"({second}-{first})")
                if b:
                    found.setdefault(a / b, f"({first}/{second})")
                if a:
                    found.setdefault(b / a, f"({second}/{first})")
    return found


def _splits(numbers: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every way to cut the numbers into two parts, each once; both keep the order."""
    for mask in range(1, 1 << (len(numbers) - 1)):
        left = tuple(n for i, n in enumerate(numbers) if mask >> i & 1)
        yield left, tuple(n for i, n in enumerate(numbers) if not mask >> i & 1)


# --- knights and knaves ----------------------------------------------------------------------------------


class Knights:
    """Knights-and-knaves puzzles from a file with a quiz, the names, and who is a knight."""

    fields: ClassVar[dict[str, str]] = {"prompt": "quiz", "names": "names", "solution": "solution"}

    def __init__(
        self,
        data: str | None,
        test_data: str | None,
        fields: Mapping[str, str] | None,
        test_share: float | None,
        instruction: str | None,
    ) -> None:
        if data is None:
            raise UserError("game knights needs data: a .parquet or .jsonl file with quiz, names and solution")
        share = TEST_SHARE if test_share is None else test_share
        self.rows = load_splits(data, test_data, field_map(fields, self.fields), share)
        self.instruction = KNIGHTS_INSTRUCTION if instruction is None else instruction
        self.reward = KnightsAndKnaves()
        for rows in self.rows.values():
            for row in rows:
                _check_knights(row)

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return map(self._task, shuffled(self.rows[split], split, seed))

    def verify(self, task: Task, response: str) -> Verdict:
        return self.reward(response, task.reference)

    def gold(self, task: Task) -> str:
        return f"#### {task.answer}"

    def _task(self, row: Row) -> Task:
        names, solution = list(row.values["names"]), list(row.values["solution"])
        prompt = with_instruction(row.prompt, self.instruction)
        reference = {"names": names, "solution": solution}
        return Task(prompt, statement(names, solution), reference, tags=("knights", f"people-{len(names)}"))


def _check_knights(row: Row) -> None:
    names, solution = row.values["names"], row.values["solution"]
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        raise row.error("names", f"must be a list of names, got {names!r}")
    if len({n.casefold() for n in names}) < len(names):
        raise row.error("names", f"a name occurs twice in {names!r}")
    if not (isinstance(solution, list) and all(isinstance(s, bool) for s in solution)):
        raise row.error("solution", f"must be a list of true (knight) and false (knave), got {solution!r}")
    if len(solution) != len(names):
        raise row.error("solution", f"{len(solution)} entries for {len(names)} names")


# --- reasoning_gym ---------------------------------------------------------------------------------------


class ReasoningGym:
    """A data set of the reasoning_gym package, scored by its own scorer, of which only an exact 1.0 counts
    (its default pays a share for any answer that contains the gold one).

    Scorers run in a child process: some evaluate the answer with Python or sympy, which may never end. What
    such a scorer gets is searched for calls first (`unsafe`).

    The answer is what follows the last `####` (unless one of the other marks does, or the gold answer itself
    contains such a run), else the last `\\boxed{…}`, else what the last `<answer>…</answer>` holds, else the
    whole response.
    """

    chunk = 500
    deadline_s = 10.0
    max_chars = 10_000
    most_skipped = 1_000
    """Items of the other split in a row after which a narrow data set is taken to have none of this one."""

    def __init__(self, data_set: str, config: Mapping[str, Any], instruction: str | None) -> None:
        self.name, self.config = data_set, dict(config)
        self.instruction = GYM_INSTRUCTION if instruction is None else instruction
        for key in ("seed", "size"):
            if key in self.config:
                raise UserError(f"config.{key} is set by k2rl: remove it")
        self._create(seed=0)

    def tasks(self, split: Split, seed: int) -> Iterator[Task]:
        return mixed({0: self._stream(split, seed)}, {0: 1.0}, "reasoning_gym", most_duplicates=1_000)

    def _stream(self, split: Split, seed: int) -> Iterator[Task]:
        start = rng.key("reasoning_gym", self.name, split, seed)
        skipped = 0
        for number in count():
            data_set = self._create(seed=(start + number * self.chunk) % 2**31)
            for entry in islice(data_set, self.chunk):
                question = entry["question"]
                if rng.in_test_split("reasoning_gym", self.name, question) != (split == "test"):
                    skipped += 1
                    if skipped == self.most_skipped:
                        return
                else:
                    skipped = 0
                    reference = {"data_set": self.name, "entry": pack(entry)}
                    answer = None if entry["answer"] is None else str(entry["answer"])
                    prompt = with_instruction(question, self.instruction)
                    yield Task(prompt, answer, reference, tags=("reasoning_gym", self.name))

    def verify(self, task: Task, response: str) -> Verdict:
        gold = task.answer
        try:
            answer = _gym_answer(response, gold)
        except NoAnswerError as error:
            return Verdict.malformed(str(error))
        if len(answer) > max(self.max_chars, 2 * len(gold or "")):
            return Verdict.malformed(f"the answer has {len(answer)} characters, the limit is {self.max_chars}")
        if gold and _SEVERAL.search(answer) and not _SEVERAL.search(gold):
            # Some scorers look at the first number only, or for the gold answer anywhere.
            return Verdict.of(False, f"{answer[:80]!r} lists several candidates")
        if self.name in EVALUATING and (why := unsafe(answer)):
            return Verdict.malformed(why)
        entry = task.reference["entry"]

        def score(candidate: str) -> float:
            args = (self.name, self.config, entry, candidate)
            return float(_scorer.call(*args, deadline_s=self.deadline_s))

        return attributed(
            attempt=lambda: score(answer) == 1.0,
            # Where no gold answer is known, a scorer that reads the empty answer is taken to work.
            control=lambda: score(gold or "") == 1.0 or gold is None,
            wrong=f"{self.name} does not accept {answer[:80]!r}",
        )

    def gold(self, task: Task) -> str | None:
        if task.answer is None:
            return None
        return f"<answer>{task.answer}</answer>" if "####" in task.answer else f"#### {task.answer}"

    def _create(self, seed: int) -> Iterable[dict[str, Any]]:
        import reasoning_gym  # Takes seconds; only this game needs it.
        from reasoning_gym.factory import DATASETS

        if self.name not in DATASETS:
            raise UserError(
                f"reasoning_gym has no data set {self.name!r}{did_you_mean(self.name, DATASETS)}: "
                f"it has {', '.join(sorted(DATASETS))}"
            )
        options = [f.name for f in dataclasses.fields(DATASETS[self.name][1]) if f.name not in ("seed", "size")]
        for key in self.config:
            if key not in options:
                raise UserError(
                    f"{self.name} has no option {key!r}{did_you_mean(key, options)}: "
                    f"it has {', '.join(options) or 'none'}"
                )
        try:
            made = reasoning_gym.create_dataset(self.name, seed=seed, size=self.chunk, **self.config)
        except (AssertionError, ValueError, TypeError) as error:
            raise UserError(f"reasoning_gym refuses this config of {self.name}: {error}") from None
        return cast(Iterable[dict[str, Any]], made)


# An answer that is never right. A scorer that accepts it (`game_of_life_halting` compares the truth values of
# two strings) judges nothing: the gold answer's own text is then the only right one.
NONSENSE = "qqqqqqqq"

# Data sets whose scorer evaluates the answer as Python (`eval`) or with sympy (which does as well).
EVALUATING = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
_FUNCTION = re.compile(r"a?(?:sin|cos|tan)h?|sec|csc|cot|exp|log|ln|sqrt|Abs|erf")
_KEYWORD = re.compile(r"\b(?:and|or|not|if|else|for|in|is|lambda|await|yield|import)\b")
_SEVERAL = re.compile(r",(?!\d{3}\b)|;|\b(?:or|and)\b|.\n.", re.IGNORECASE)
_CALL = re.compile(r"([^\W\d]\w*|[\])}\"'])\s*\(")


def unsafe(answer: str) -> str:
    """Why an answer must not be evaluated, or "": it calls something other than a function of mathematics.

    Names, literals and operators alone can run no code; a string inside a call could hold some for sympy.
    """
    if any(mark in answer for mark in "\\#@"):
        return "the answer holds a character that no expression needs"
    if "(" in answer and any(quote in answer for quote in "\"'"):
        return "the answer has a string beside parentheses"
    if found := _KEYWORD.search(answer):
        return f"the answer holds {found.group()!r}"
    calls = [name for name in _CALL.findall(answer) if not _FUNCTION.fullmatch(name)]
    return f"the answer calls {calls[0]!r}" if calls else ""


def _gym_answer(response: str, gold: str | None) -> str:
    hashes = None if gold and "####" in gold else after_hashes(response)
    if hashes is not None and "<answer>" not in hashes and "\\boxed" not in hashes:
        return hashes  # Otherwise the hashes are a heading.
    tagged = re.findall(r"<answer>(.*?)</answer>", response, re.DOTALL)
    boxed = last_boxed(response)
    if boxed is not None:
        return boxed.strip()
    return (tagged[-1] if tagged else response).strip()


def pack(value: Any) -> Any:
    """A data set's entry as JSON from which `unpack` makes an equal one: scorers tell tuples from lists."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, list):
        return [pack(v) for v in value]
    if isinstance(value, Mapping) and all(isinstance(k, str) and not k.startswith("$") for k in value):
        return {str(k): pack(v) for k, v in value.items()}
    if isinstance(value, Mapping):
        return {"$dict": [[pack(k), pack(v)] for k, v in value.items()]}
    if isinstance(value, tuple | set | frozenset):
        items = list(value) if isinstance(value, tuple) else sorted(value, key=repr)
        return {f"${type(value).__name__}": [pack(v) for v in items]}
    if hasattr(value, "tolist"):  # NumPy
        return pack(value.tolist())
    raise TypeError(f"can't store a {type(value).__name__} in a task: {value!r}")


def unpack(value: Any) -> Any:
    """The inverse of `pack`."""
    if isinstance(value, list):
        return [unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (mark, items), *_ = value.items()
        if mark == "$dict":
            return {unpack(k): unpack(v) for k, v in items}
        if mark in _MAKERS:
            return _MAKERS[mark](unpack(v) for v in items)
    return {k: unpack(v) for k, v in value.items()}


_MAKERS: dict[str, Callable[[Iterable[Any]], Any]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}


def gym_scorer() -> Callable[[str, Mapping[str, Any], Any, str], float]:
    """Runs in the child: `(data set, config, packed entry, answer) -> score`."""
    import reasoning_gym

    @lru_cache(maxsize=16)
    def made(name: str, config: str) -> Any:
        return reasoning_gym.create_dataset(name, seed=0, size=2, **json.loads(config))

    def score(name: str, config: Mapping[str, Any], packed: Any, answer: str) -> float:
        data_set, entry = made(name, json.dumps(config, sort_keys=True)), unpack(packed)
        with contextlib.suppress(Exception):
            if entry["answer"] is not None and data_set.score_answer(NONSENSE, entry) == 1.0:
                return float(answer == entry["answer"])
        return float(data_set.score_answer(answer, entry))

    return score


_scorer = GraderProcess("k2rl_envs.logic_env:gym_scorer")
