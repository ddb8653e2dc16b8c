"""The tasks under probe, their gold responses, and every episode played on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from k2rl.envcheck.report import Flaw, short
from k2rl.envcheck.subject import DiedError, HungError, Subject, SubjectError
from k2rl.envcheck.texts import NONSENSE, marked
from k2rl.errors import UserError
from k2rl.types import Split, Status, Task, Verdict

PAID = 0.5
"""A hack is accepted when it is paid this score or more."""
SOME = 8
"""Tasks on which a hack is tried."""
MOST_HANGS = 3
POOL = 200
"""Tasks of a split that are compared: the same again, in another process, in the other split."""
POOL_S = 10.0
SPLITS: tuple[Split, ...] = ("train", "test")

Turns = tuple[str, ...]


class InapplicableError(Exception):
    """A probe does not apply; the message says why."""


class GaveUpError(InapplicableError):
    """The grader hangs again and again; nothing more is played."""


@dataclass(frozen=True)
class Play:
    """An episode: what was said (the last turn repeated while it went on), and what became of it.

    `seen` are the observations as the policy sees them, the prompt first; `problems` what is wrong with what the
    environment returned; `raised` and `hung` how it failed; `seconds` what reset and steps took.
    """

    task: Task
    said: Turns
    verdict: Verdict | None = None
    over: bool = False
    returned: float = 0.0
    seconds: float = 0.0
    seen: Turns = ()
    problems: Turns = ()
    raised: str = ""
    hung: str = ""

    @classmethod
    def of(cls, task: Task, said: Sequence[str], data: Mapping[str, Any]) -> Play:
        found = data["verdict"]
        return cls(
            task,
            tuple(said),
            None if found is None else Verdict(Status(found["status"]), found["score"], found["detail"]),
            data["over"],
            data["returned"],
            data["seconds"],
            tuple(data["seen"]),
            tuple(data["problems"]),
            data["raised"],
        )

    @property
    def correct(self) -> bool:
        return self.over and self.verdict is not None and self.verdict.status is Status.CORRECT

    @property
    def paid(self) -> bool:
        return self.verdict is not None and (self.verdict.score or 0.0) >= PAID

    @property
    def outcome(self) -> str:
        """What became of it, in a few words."""
        if self.hung or self.raised:
            return self.hung or self.raised
        if self.verdict is None:
            return f"no verdict, {'' if self.over else 'not over, '}return {self.returned:g}"
        score = "no score" if self.verdict.score is None else f"score {self.verdict.score:g}"
        detail = f": {short(self.verdict.detail, 100)}" if self.verdict.detail else ""
        return f"{self.verdict.status}, {score}{'' if self.over else ', not over'}{detail}"

    @property
    def key(self) -> tuple[object, ...]:
        """What must be the same when the same is said again."""
        found = self.verdict
        return (self.over, self.returned, found and found.status, found and found.score, bool(self.raised))


@dataclass(frozen=True)
class Case:
    """A task with its gold turns (none where they are unknown); `span` is where the bare answer stands in the last."""

    task: Task
    gold: Turns
    span: tuple[int, int]

    @classmethod
    def of(cls, task: Task, gold: Turns) -> Case:
        """The answer is what stands in a mark such as `\\boxed{}`, else the task's answer, else the whole turn."""
        last = gold[-1] if gold else ""
        span = marked(last)
        if span is None and task.answer and task.answer in last:
            at = last.rindex(task.answer)
            span = at, at + len(task.answer)
        return cls(task, gold, span or (0, len(last)))

    @property
    def answer(self) -> str:
        return self.gold[-1][slice(*self.span)] if self.gold else ""

    def with_answer(self, text: str) -> str:
        """The last gold turn with another answer in the place of its own."""
        start, end = self.span
        return self.gold[-1][:start] + text + self.gold[-1][end:]

    def is_right(self, text: str) -> bool:
        """Whether a probe's text happens to be this task's answer."""
        return bool(self.gold) and text.strip() in (self.gold[-1].strip(), self.answer, self.task.answer)


class Bench:
    """Plays episodes and remembers them.

    Args:
        subject: the environment in its process.
        count: tasks to probe, two thirds of them from the train split.
        seed: which tasks, as in `tasks(split, seed)`.
        deadline_s: seconds after which an episode is taken to hang.
        model: whose tokens the budget is counted in.
    """

    def __init__(self, subject: Subject, count: int, seed: int, deadline_s: float, model: str) -> None:
        self.subject, self.deadline_s, self.model, self.seed = subject, deadline_s, model, seed
        self.about = subject.about
        self.task_problems: list[Flaw] = []
        self.pools: dict[Split, list[Task]] = {split: self._pool(split) for split in SPLITS}
        self.log: list[Play] = []
        self.gold_problems: list[Flaw] = []
        self._known: dict[tuple[str, Turns, bool], Play] = {}
        train, test = self.pools["train"], self.pools["test"]
        train = train[: count - min(count // 3, len(test))]
        self.cases = list(self._cases([*train, *test[: count - len(train)]]))

    @property
    def some(self) -> list[Case]:
        return self.cases[:: max(1, len(self.cases) // SOME)][:SOME]

    @property
    def known(self) -> list[Case]:
        """The cases with a gold response."""
        return [c for c in self.cases if c.gold]

    def more(self, count: int) -> list[Case]:
        """Cases with a gold response for statistics, from the train split."""
        return [c for c in self._cases(self.pools["train"][:count], note=False) if c.gold]

    def _cases(self, tasks: Sequence[Task], note: bool = True) -> Iterator[Case]:
        try:
            rows = self.subject.ask("golds", 4 * self.deadline_s, tasks=[t.to_json() for t in tasks])
        except SubjectError as error:
            rows = [{"raised": str(error)} for _ in tasks]
        for task, row in zip(tasks, rows, strict=True):
            if "raised" in row and note:
                self.gold_problems.append(Flaw(f"gold() fails: {row['raised']}", task))
            gold = row.get("gold")
            yield Case.of(task, (gold,) if isinstance(gold, str) else tuple(gold or ()))

    def corruptions(
        self, cases: Sequence[Case], draw: int = 0, subject: Subject | None = None
    ) -> list[tuple[Case, dict[str, str], str]]:
        """What `corrupt` makes of the gold response of each case, and how it failed; with another number another draw.

        Only of gold responses of one turn: no others are ever corrupted.
        """
        cases = [c for c in cases if len(c.gold) == 1]
        request = {"tasks": [c.task.to_json() for c in cases], "responses": [c.gold[0] for c in cases], "draw": draw}
        rows = (subject or self.subject).ask("corruptions", 4 * self.deadline_s, **request)
        return [(c, row.get("made", {}), row.get("raised", "")) for c, row in zip(cases, rows, strict=True)]

    # --- tasks ---------------------------------------------------------------------------------------------

    def _pool(self, split: Split) -> list[Task]:
        data = self._ask_tasks(self.subject, split)
        self.task_problems += [Flaw(f"{split}: {problem}") for problem in data["unfit"]]
        if not data["tasks"]:
            self.task_problems.append(Flaw(f"tasks({split!r}, {self.seed}) yields no task that can be used"))
        return [Task.from_json(t) for t in data["tasks"]]

    def _ask_tasks(self, subject: Subject, split: Split) -> Any:
        try:
            return subject.ask("tasks", POOL_S + self.deadline_s, split=split, seed=self.seed, n=POOL, seconds=POOL_S)
        except HungError as error:
            raise UserError(f"tasks({split!r}, {self.seed}) does not come to an end: {error}") from None

    def differences(self, subject: Subject, when: str) -> Iterator[Flaw]:
        """The first task of each split that is another one when asked for again, possibly in another process."""
        for split, pool in self.pools.items():
            again = [Task.from_json(t) for t in self._ask_tasks(subject, split)["tasks"]]
            # A slow stream may have been cut sooner: what both have is compared.
            for n, (one, other) in enumerate(zip(pool, again, strict=False), start=1):
                if one.to_json() != other.to_json():
                    said = short(other.messages[-1]["content"])
                    yield Flaw(f"{split} task {n} is {said} {when}", one)
                    break

    # --- episodes ------------------------------------------------------------------------------------------

    def play(self, task: Task, turns: Turns, go_on: bool = True, again: bool = False) -> Play:
        """An episode; known ones are not played `again` unless asked.

        Raises:
            GaveUpError: several episodes have hung already.
        """
        known = self._known.get((task.id, turns, go_on))
        if known is not None and not again:
            return known
        if sum(bool(p.hung) for p in self.log) >= MOST_HANGS:
            raise GaveUpError(f"the grader hung {MOST_HANGS} times; nothing more was played")
        try:
            data = self.subject.ask("play", self.deadline_s, task=task.to_json(), turns=turns, go_on=go_on)
            played = Play.of(task, turns, data)
        except HungError as error:
            played = Play(task, turns, hung=str(error))
        except DiedError as error:
            played = Play(task, turns, raised=str(error))
        self.log.append(played)
        self._known[task.id, turns, go_on] = played
        return played

    def gold(self, case: Case) -> Play:
        return self.play(case.task, case.gold, go_on=False)

    def say(self, case: Case, text: str) -> list[Play]:
        """The text all along and, where the gold has several turns, in place of the last of them."""
        ways = [(text,), (*case.gold[:-1], text)]
        return [self.play(case.task, turns) for turns in dict.fromkeys(ways)]

    def together(self, cases: Sequence[Case]) -> list[Play]:
        """The gold episodes of several tasks, played in turns."""
        tasks, turns = [c.task.to_json() for c in cases], [c.gold for c in cases]
        rows = self.subject.ask("together", len(cases) * self.deadline_s, tasks=tasks, turns=turns)
        return [Play.of(c.task, c.gold, row) for c, row in zip(cases, rows, strict=True)]

    def interrupted(self, case: Case, places: int, seconds: float) -> list[tuple[str, Play]]:
        """The gold episode with a time-out raised at each of several places, whose names come with it."""
        request = {"task": case.task.to_json(), "turns": case.gold, "places": places, "seconds": seconds}
        try:
            rows = self.subject.ask("interrupted", self.deadline_s + 2 * seconds, **request)
        finally:
            self.subject.close()  # What was interrupted may be in disorder.
        return [(row["place"], Play.of(case.task, case.gold, row["play"])) for row in rows]

    # --- what probes have in common ------------------------------------------------------------------------

    def others(self, case: Case, count: int) -> list[Case]:
        """Cases whose gold response is wrong here."""
        found: dict[str, Case] = {}
        for other in self.known:
            if len(found) == count:
                break
            if other.answer not in (case.answer, *found) and not any(p.paid for p in self.say(case, other.gold[-1])):
                found[other.answer] = other
        return list(found.values())

    def wrong(self, case: Case) -> str:
        """A response in the right form that is wrong here, or nonsense where none is known."""
        others = self.others(case, 1)
        return others[0].gold[-1] if others else NONSENSE

    def accepted(self, case: Case, texts: Iterable[str]) -> Iterator[Flaw]:
        """The first of the texts that is paid for."""
        for text in texts:
            if case.is_right(text):
                continue
            for played in self.say(case, text):
                if played.paid:
                    yield Flaw(f"{short(text, 100)} is {played.outcome}", case.task)
                    return
