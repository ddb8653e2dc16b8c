"""The probes, in the order in which they run.

A probe is a generator of flaws with a name and a meaning. It passes when it yields none; where it does not apply it
raises `InapplicableError`. To add one, write such a function here:

    @probe("shouting", "an answer in capitals is worth what it is in small letters", "gold")
    def shouting(bench: Bench) -> Iterator[Flaw]:
        for case in bench.some:
            if not any(played.correct for played in bench.say(case, case.gold[-1].upper())):
                yield Flaw("the gold response in capitals fails", case.task)
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from k2rl import assets, budget
from k2rl.envcheck import texts
from k2rl.envcheck.bench import Bench, Case, InapplicableError
from k2rl.envcheck.report import Flaw, short
from k2rl.envcheck.subject import HungError, Subject, SubjectError
from k2rl.errors import UserError
from k2rl.types import SCORED, Status, Task

MOST_CONSTANT = 0.5
"""Share of the tasks from which on one and the same response passes too often."""
SLOW_S = 0.5
MOST_OF_A_KIND, MOST_OF_ALL = 0.75, 0.65
"""Shares of the corruptions of one kind, and of all kinds, beyond which too many are longer, or shorter."""
LENGTH_TASKS, LENGTH_DRAWS = 64, 4
LEAST_TASKS = 8
"""Tasks in which a kind must occur before its lengths say something."""

NO_GOLD = "gold() knows no response"
NO_CORRUPT = "there is no corrupt()"

Need = Literal["gold", "verdicts"]
"""What a probe can't do without: gold responses; a score at the end of an episode."""


@dataclass(frozen=True)
class Probe:
    """A name, what holds where it passes, what it needs, and the search for flaws."""

    name: str
    meaning: str
    needs: tuple[Need, ...]
    search: Callable[[Bench], Iterator[Flaw]]


PROBES: dict[str, Probe] = {}


def probe(name: str, meaning: str, *needs: Need) -> Callable[[Callable[[Bench], Iterator[Flaw]]], None]:
    """Enter the function into the table."""

    def enter(search: Callable[[Bench], Iterator[Flaw]]) -> None:
        PROBES[name] = Probe(name, meaning, needs, search)

    return enter


# --- tasks -----------------------------------------------------------------------------------------------------


@probe("tasks", "both splits have tasks, and these can be stored as JSON")
def tasks(bench: Bench) -> Iterator[Flaw]:
    yield from bench.task_problems


@probe("same_tasks", "the same split and seed give the same tasks again")
def same_tasks(bench: Bench) -> Iterator[Flaw]:
    yield from bench.differences(bench.subject, "at a second call")


@probe("processes", "another process, with other hashes of strings, gives the same tasks and corruptions")
def processes(bench: Bench) -> Iterator[Flaw]:
    other = Subject(bench.subject.origin, hash_seed=bench.subject.hash_seed + 1)
    try:
        yield from bench.differences(other, "in another process")
        if bench.about["corrupts"]:
            yield from _corrupted_otherwise(bench, other, "in another process")
    finally:
        other.close()


@probe("splits", "train and test share no task")
def splits(bench: Bench) -> Iterator[Flaw]:
    train = {_content(t) for t in bench.pools["train"]}
    for task in bench.pools["test"]:
        if _content(task) in train:
            yield Flaw("the task is in both splits", task)


def _content(task: Task) -> str:
    """Prompt and answer, where there is one: a reference may number the tasks."""
    return task.id if task.answer is None else json.dumps([task.messages, task.answer], sort_keys=True)


@probe("gymnasium", "gymnasium's own check_env passes")
def gymnasium(bench: Bench) -> Iterator[Flaw]:
    if not bench.pools["train"]:
        raise InapplicableError("there are no training tasks")
    try:
        bench.subject.ask("gymnasium", 4 * bench.deadline_s)
    except SubjectError as error:
        yield Flaw(str(error))


# --- the gold response -----------------------------------------------------------------------------------------


@probe("gold", "the gold response is correct", "verdicts")
def gold(bench: Bench) -> Iterator[Flaw]:
    if not bench.known and not bench.gold_problems:
        raise InapplicableError(NO_GOLD)
    yield from bench.gold_problems
    for case in bench.known:
        played = bench.gold(case)
        if not played.correct:
            yield Flaw(f"the gold response {short(case.gold[-1])} is {played.outcome}", case.task)


@probe("budget", "the gold response fits into the token budget", "gold")
def fits_budget(bench: Bench) -> Iterator[Flaw]:
    tokens = _counter(bench.model)
    for case in bench.known:
        needed = sum(tokens(turn) + 1 for turn in case.gold)  # each turn ends with a stop token
        allowed = budget.limit(case.task, budget.BudgetConfig(), bench.about["budget"])
        if needed > allowed:
            yield Flaw(f"the gold response has {needed} of {bench.model}'s tokens, the budget is {allowed}", case.task)


def _counter(model: str) -> Callable[[str], int]:
    """Tokens of a text. A folder's tokenizer.json is read by itself: transformers takes seconds to import."""
    folder = assets.NANO if model == "nano" else Path(model).expanduser()
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return lambda text: len(fast.encode(text, add_special_tokens=False).ids)
    if model == "nano":
        raise InapplicableError("the embedded model nano is not part of this installation; give a model")
    from transformers import AutoTokenizer

    try:
        slow = AutoTokenizer.from_pretrained(os.path.expanduser(model))
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model}: no tokenizer: {str(error).strip().splitlines()[0]}") from None
    return lambda text: len(slow(text, add_special_tokens=False).input_ids)


@probe("leak", "the answer can't be copied from a fixed place in the prompt", "gold")
def leak(bench: Bench) -> Iterator[Flaw]:
    """A short answer may well occur in a prompt. It leaks where the same words come right before it in nearly all."""
    shown = [(c, "\n".join(bench.gold(c).seen[: len(c.gold)])) for c in bench.known]
    if len(shown) < 4 or len({c.answer for c, _ in shown}) < 2:
        raise InapplicableError("needs four tasks with a gold response, and two answers")
    for wanted in ("answer", "response"):
        pairs = [(text, c.answer if wanted == "answer" else c.gold[-1].strip()) for c, text in shown]
        marks = Counter(mark for text, answer in pairs[:4] for mark in _marks_before(text, answer))
        for mark in sorted((m for m, n in marks.items() if n >= 2), key=len, reverse=True):
            leaks = [_follows(text, mark, answer) for text, answer in pairs]
            if sum(leaks) >= 0.9 * len(leaks):
                first = shown[leaks.index(True)][0]
                yield Flaw(f"the {wanted} follows {mark!r} in {sum(leaks)} of {len(leaks)} prompts", first.task)
                return


def _marks_before(text: str, answer: str) -> set[str]:
    """What comes right before the answer wherever it stands in the text: up to 16 characters."""
    found = re.finditer(rf"(?<!\w){re.escape(answer)}(?!\w)", text) if answer else ()
    return {text[m.start() - n : m.start()] for m in found for n in range(1, min(16, m.start()) + 1)}


def _follows(text: str, mark: str, answer: str) -> bool:
    """Whether the answer comes right after the first or the last place of the mark."""
    places = (text.find(mark), text.rfind(mark))
    return any(re.match(rf"{re.escape(answer)}(?!\w)", text[at + len(mark) :]) for at in places if at >= 0)


@probe("mutations", "at least one of eight ways to spoil the gold response is noticed", "gold", "verdicts")
def mutations(bench: Bench) -> Iterator[Flaw]:
    for case in bench.some:
        spoiled = [case.with_answer(t) for t in texts.mutations(case.answer)]
        if case.gold and all(bench.say(case, text)[-1].paid for text in spoiled):
            yield Flaw(f"all of {len(spoiled)} pass, such as {short(spoiled[0])}", case.task)


# --- corruptions of it: they feed the critic's gate and preference pairs ----------------------------------------


@probe("corruptions", "what corrupt() makes of a gold response is another text, the same again, and not correct")
def corruptions(bench: Bench) -> Iterator[Flaw]:
    if not bench.about["corrupts"]:
        yield from _without_corruptions(bench, NO_CORRUPT)
    found = bench.corruptions(bench.known)
    if not found:
        raise InapplicableError(NO_GOLD)
    if not any(made or failure for _, made, failure in found):
        yield from _without_corruptions(bench, "corrupt() makes nothing of the gold responses")
    for case, made, failure in found:
        if failure:
            yield Flaw(f"corrupt() fails: {failure}", case.task)
        for kind, text in made.items():
            if not text.strip():
                yield Flaw(f"{kind} is no text: {short(text)}", case.task)
            elif text == case.gold[0]:
                yield Flaw(f"{kind} is the response itself: {short(text)}", case.task)
    yield from _corrupted_otherwise(bench, bench.subject, "at a second call")
    for case, made, _ in bench.corruptions(bench.some):
        for kind, text in made.items():
            if text != case.gold[0] and bench.gold(case).correct:
                played = bench.play(case.task, (text,), go_on=False)
                if played.correct:
                    yield Flaw(f"{kind}, {short(text)}, is {played.outcome}", case.task)


def _without_corruptions(bench: Bench, why: str) -> Iterator[Flaw]:
    """Nothing to probe, which only an open-ended environment is to blame for."""
    if bench.about["open_ended"]:
        yield Flaw(f"{why}, so the critic's gate would never open: let it return worse versions of a response")
    raise InapplicableError(why)


def _corrupted_otherwise(bench: Bench, subject: Subject, when: str) -> Iterator[Flaw]:
    """The first corruptions that are others when asked for again, possibly in another process."""
    for (case, made, _), (_, again, _) in zip(
        bench.corruptions(bench.some), bench.corruptions(bench.some, subject=subject), strict=True
    ):
        for kind in sorted({*made, *again}):
            if made.get(kind) != again.get(kind):
                one, other = (short(m.get(kind, "missing")) for m in (made, again))
                yield Flaw(f"{kind} is {one} and, with the same draw, {other} {when}", case.task)
                return


@probe("corruption_length", "what corrupt() makes of gold responses is neither longer nor shorter as a rule")
def corruption_length(bench: Bench) -> Iterator[Flaw]:
    """Else a judge that goes by length would seem to have judgement."""
    if not bench.about["corrupts"]:
        raise InapplicableError(NO_CORRUPT)
    cases = bench.more(LENGTH_TASKS)
    compared = [
        (kind, case.task.id, _longer(text, case.gold[0]))
        for draw in range(LENGTH_DRAWS)
        for case, made, _ in bench.corruptions(cases, draw)
        for kind, text in made.items()
    ]
    if (n := len({task for _, task, _ in compared})) < LEAST_TASKS:
        raise InapplicableError(f"needs {LEAST_TASKS} tasks with a gold response that is corrupted, there are {n}")
    for kind in sorted({kind for kind, _, _ in compared}):
        some = [(task, longer) for k, task, longer in compared if k == kind]
        if len({task for task, _ in some}) >= LEAST_TASKS:
            yield from _one_sided([longer for _, longer in some], MOST_OF_A_KIND, kind)
    yield from _one_sided([longer for _, _, longer in compared], MOST_OF_ALL, "what corrupt() makes, of any kind,")


def _longer(text: str, gold: str) -> float:
    """1 where it is longer than the gold response, 0 where it is shorter, a half where neither."""
    return 0.5 + ((len(text) > len(gold)) - (len(text) < len(gold))) / 2


def _one_sided(longer: Sequence[float], most: float, what: str) -> Iterator[Flaw]:
    share = statistics.fmean(longer)
    for side, part in (("longer", share), ("shorter", 1 - share)):
        if part > most:
            yield Flaw(
                f"{what} is {side} than the response in {part:.0%} of {len(longer)} cases (equal lengths count half), "
                f"and {most:.0%} is the most: a rule of length would look like judgement"
            )


# --- hacks: none of these may be paid --------------------------------------------------------------------------


@probe("empty", "no text, or nothing but white space, fails", "verdicts")
def empty(bench: Bench) -> Iterator[Flaw]:
    for case in bench.some:
        yield from bench.accepted(case, texts.EMPTY)


@probe("null", "words and marks that stand for nothing fail", "verdicts")
def null(bench: Bench) -> Iterator[Flaw]:
    for case in bench.some:
        yield from bench.accepted(case, _unlike(case, texts.NULL))


@probe("echo", "the prompt, said back, fails", "verdicts")
def echo(bench: Bench) -> Iterator[Flaw]:
    for case in bench.some:
        prompt = "\n\n".join(str(m["content"]) for m in case.task.messages)
        yield from bench.accepted(case, (prompt, f"{prompt}\n{prompt}", f"#### {prompt}"))


@probe("constant", "no single response passes on half of the tasks", "gold", "verdicts")
def constant(bench: Bench) -> Iterator[Flaw]:
    cases = bench.more(64)
    if len(cases) < 8:
        raise InapplicableError(f"needs eight tasks with a gold response, there are {len(cases)}")
    by_answer = {c.answer: c for c in reversed(cases)}
    for answer, _ in Counter(c.answer for c in cases).most_common(3):
        passed = [c for c in cases if bench.play(c.task, by_answer[answer].gold, go_on=False).paid]
        if len(passed) >= MOST_CONSTANT * len(cases):
            said = short(by_answer[answer].gold[-1])
            yield Flaw(f"{said} passes on {len(passed)} of {len(cases)} tasks", passed[-1].task)
            return


@probe("candidates", "a response that lists the right answer among wrong ones fails", "gold", "verdicts")
def candidates(bench: Bench) -> Iterator[Flaw]:
    tried = 0
    for case in bench.some:
        others = bench.others(case, 4) if case.gold else []
        if len(others) < 2:
            continue
        tried += 1
        # In the middle, as rules that take the first or the last of several answers are honest.
        middle = len(others) // 2
        listed = [*others[:middle], case, *others[middle:]]
        lists = [mark.join(c.answer for c in listed) for mark in (", ", " or ", " and ", " ", "\n", "; ")]
        whole = [mark.join(c.gold[-1] for c in listed) for mark in ("\n", " ")]
        yield from bench.accepted(case, [*map(case.with_answer, lists), *lists, *whole])
    if not tried:
        raise InapplicableError("needs tasks with different answers")


@probe("buried", "the bare answer in the midst of other words fails", "gold", "verdicts")
def buried(bench: Bench) -> Iterator[Flaw]:
    for case in bench.some:
        if case.answer:
            yield from bench.accepted(case, texts.buried(case.answer))


@probe("forged", "a made-up verdict fails, alone and beside a wrong answer", "verdicts")
def forged(bench: Bench) -> Iterator[Flaw]:
    for case in bench.some:
        yield from bench.accepted(case, _alone_and_beside(bench, case, texts.FORGED))


@probe("override", "a request to the judge fails, alone and beside a wrong answer", "verdicts")
def override(bench: Bench) -> Iterator[Flaw]:
    for case in bench.some:
        yield from bench.accepted(case, _alone_and_beside(bench, case, texts.OVERRIDE))


def _alone_and_beside(bench: Bench, case: Case, lines: Iterable[str]) -> Iterator[str]:
    wrong = bench.wrong(case)
    for line in _unlike(case, lines):
        yield from (line, f"{wrong}\n{line}", f"{line}\n{wrong}")


def _unlike(case: Case, lines: Iterable[str]) -> list[str]:
    """Those that don't happen to hold the answer: `score: 1.0` does where the answer is 1."""
    return [line for line in lines if not (case.answer and texts.mentions(line, case.answer))]


# --- the grader ------------------------------------------------------------------------------------------------


@probe("isolated", "episodes at the same time don't disturb each other", "gold")
def isolated(bench: Bench) -> Iterator[Flaw]:
    cases = bench.known[:3]
    if len(cases) < 2 or any(bench.gold(c).hung for c in cases):
        raise InapplicableError("needs two tasks with a gold response that comes to an end")
    for case, played in zip(cases, bench.together(cases), strict=True):
        alone = bench.gold(case)
        if played.key != alone.key:
            yield Flaw(f"alone: {alone.outcome}; beside others: {played.outcome}", case.task)


@probe("steady", "the same response has the same verdict every time")
def steady(bench: Bench) -> Iterator[Flaw]:
    for case in bench.some[:4]:
        for turns in dict.fromkeys([case.gold, (*case.gold[:-1], bench.wrong(case)), (texts.NONSENSE,), ("",)]):
            if not turns:
                continue
            first = bench.play(case.task, turns)
            for _ in range(4):
                if (now := bench.play(case.task, turns, again=True)).key != first.key:
                    yield Flaw(f"{short(turns[-1])} is {first.outcome}; then {now.outcome}", case.task)
                    break


@probe("timeouts", "a time-out inside the grader is never a score", "gold", "verdicts")
def timeouts(bench: Bench) -> Iterator[Flaw]:
    """A time-out is raised at one line of the running grader after the other. Raising it further, a verdict without
    a score and a second attempt that succeeds are all fine; a bad score for a gold response is not."""
    for case in bench.known[:1]:
        if not bench.gold(case).correct:
            raise InapplicableError("needs a gold response that is correct")
        try:
            interrupted = bench.interrupted(case, places=24, seconds=10.0)
        except HungError:
            raise InapplicableError("the interrupted grader did not come back") from None
        for place, played in interrupted:
            if not played.raised and played.verdict is not None and played.verdict.scored and not played.correct:
                yield Flaw(f"a time-out at {place} makes the gold response {played.outcome}", case.task)


@probe("raises", "no response makes the grader fail: it would be a way out of a bad score")
def raises(bench: Bench) -> Iterator[Flaw]:
    for case in bench.some[:1]:
        for text in texts.HOSTILE.values():
            bench.say(case, text)
        for text in texts.HOSTILE_ANSWERS.values() if case.gold else ():
            bench.say(case, case.with_answer(text))
    for played in bench.log:
        status = played.verdict.status if played.verdict is not None else Status.PENDING
        if played.raised or status not in (*SCORED, Status.PENDING):
            yield Flaw(f"{_named(played.said[-1])}: {played.outcome}", played.task)


@probe("hangs", "no response makes the grader hang")
def hangs(bench: Bench) -> Iterator[Flaw]:
    for played in bench.log:
        if played.hung:
            yield Flaw(f"{_named(played.said[-1])}: {played.hung}", played.task)


@probe("fast", f"most verdicts take less than {SLOW_S:g} s")
def fast(bench: Bench) -> Iterator[Flaw]:
    seconds = [p.seconds for p in bench.log if not p.hung]
    if seconds and statistics.median(seconds) > SLOW_S:
        yield Flaw(f"half of {len(seconds)} episodes took longer than {statistics.median(seconds):.2f} s")


def _named(text: str) -> str:
    """A response as evidence: hostile ones by their name."""
    return next((name for name, hostile in texts.HOSTILE.items() if hostile == text), None) or short(text)


@probe("verdicts", "rewards, verdicts and ends of episodes are what the contract says")
def verdicts(bench: Bench) -> Iterator[Flaw]:
    told: set[str] = set()  # a problem is shown once, not once an episode
    judged = any(p.verdict is not None for p in bench.log)
    for played in bench.log:
        problems = list(played.problems)
        if judged and played.over and played.verdict is None and not played.raised:
            problems.append("the episode ended without a verdict")
        for problem in problems:
            if problem not in told:
                told.add(problem)
                yield Flaw(f"{problem}, on {_named(played.said[-1])}", played.task)
