"""Environments with one flaw each, for the probes of `k2rl env check`; the class they all extend has none."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import gymnasium
import numpy as np

from k2rl import Env, SingleTurnEnv, Split, Status, Task, Verdict
from k2rl.rng import generator, in_test_split

WORDS = (
    *("amber", "birch", "coral", "delta", "ember", "fjord", "grove", "heath"),
    *("islet", "jetty", "knoll", "larch", "marsh", "north", "ocean", "plain"),
)


class Sound(SingleTurnEnv):
    """Write two words backwards."""

    budget = 32

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        for first in generator("sound", seed).permutation(WORDS):
            for second in WORDS:
                if in_test_split("sound", str(first), second) == (split == "test"):
                    yield self.task_of(f"{first} {second}")

    def task_of(self, words: str) -> Task:
        return Task(f"Write this backwards: {words}", answer=words[::-1], reference={"words": words})

    def gold(self, task: Task) -> str | None:
        return f"#### {task.answer}"

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Mapping[str, str]:
        return {"other_letters": response[:-2] + str(draw.choice(["xz", "qx"]))}

    def verify(self, task: Task, response: str) -> Verdict:
        _, mark, answer = response.rpartition("####")
        if not mark:
            return Verdict.malformed("no ####")
        return Verdict.of(self.right(task, answer.strip()))

    def right(self, task: Task, answer: str) -> bool:
        return answer == task.answer


class SoundNumbers(Sound):
    """Short answers that may occur in the prompt, and a mark within the text."""

    budget = 64

    def task_of(self, words: str) -> Task:
        return Task(
            f"How many different letters are there in {words}, at most 26, at least 7?", str(len(set(words)) - 1)
        )

    def gold(self, task: Task) -> str | None:
        return f"I count them. The answer is \\boxed{{{task.answer}}}. That is all of 26."

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Mapping[str, str]:
        return {"other_number": response.replace(f"{{{task.answer}}}", f"{{{int(str(task.answer)) ^ 1}}}")}

    def verify(self, task: Task, response: str) -> Verdict:
        found = re.findall(r"\\boxed\{(\d{1,9})\}", response)
        return Verdict.of(bool(found) and found[-1] == task.answer)


class SoundMessages(Sound):
    """A prompt of messages, a gold response for some tasks only, an argument."""

    def __init__(self, system: str = "Be brief.") -> None:
        self.system = system

    def task_of(self, words: str) -> Task:
        messages = ({"role": "system", "content": self.system}, {"role": "user", "content": f"Backwards: {words}"})
        return Task(messages, reference={"words": words})

    def gold(self, task: Task) -> str | None:
        words = str(task.reference["words"])
        return None if words.startswith("a") else f"#### {words[::-1]}"

    def right(self, task: Task, answer: str) -> bool:
        return answer == str(task.reference["words"])[::-1]


class NeedsArguments(Sound):
    def __init__(self, words: int) -> None:
        self.words = words


class Waived(Sound):
    """A flaw that its author stands by."""

    waived_probes: ClassVar[Mapping[str, str]] = {"null": "None is a word like others"}

    def right(self, task: Task, answer: str) -> bool:
        return answer in (task.answer, "None")


class WaivesTheUnknown(Sound):
    waived_probes: ClassVar[Mapping[str, str]] = {"nul": "a typo"}


class WaivesWithoutReason(Sound):
    waived_probes: ClassVar[Mapping[str, str]] = {"null": " "}


class OpenEnded(Sound):
    """Left to a judge."""

    open_ended = True

    def gold(self, task: Task) -> None:
        return None

    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.pending()


# --- one flaw each ---------------------------------------------------------------------------------------------


class Substring(Sound):
    """The answer anywhere is fine."""

    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.of(str(task.answer) in response)


class AnswerInPrompt(Sound):
    def task_of(self, words: str) -> Task:
        return Task(f"Write this backwards: {words} (key: {words[::-1]})", words[::-1])


class RaisesOnSurrogates(Sound):
    def verify(self, task: Task, response: str) -> Verdict:
        response.encode()
        return super().verify(task, response)


class UnscoredWhenLong(Sound):
    """A way out of a bad score."""

    def verify(self, task: Task, response: str) -> Verdict:
        if len(response) > 500_000:
            return Verdict.failure(Status.VERIFIER_ERROR, "too long for me")
        return super().verify(task, response)


class Dies(Sound):
    def right(self, task: Task, answer: str) -> bool:
        if answer == "1/0":
            os._exit(3)
        return super().right(task, answer)


class Signals(Sound):
    """A time limit by signals, which only the main thread may set."""

    def verify(self, task: Task, response: str) -> Verdict:
        if "\0" in response:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return super().verify(task, response)


class Hangs(Sound):
    """A regular expression that takes for ever, and lets no other thread run meanwhile."""

    def verify(self, task: Task, response: str) -> Verdict:
        if response.startswith("aaaa") and len(response) < 100_000:
            re.match(r"(a+)+$", response)
        return super().verify(task, response)


class AlwaysSlow(Sound):
    def verify(self, task: Task, response: str) -> Verdict:
        time.sleep(0.003)
        return super().verify(task, response)


class HangsOnAll(Sound):
    def verify(self, task: Task, response: str) -> Verdict:
        while True:
            pass


class AcceptsAll(Sound):
    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.of(True)


class ForeignSpace(Sound):
    """Its observations do not lie in its observation space."""

    observation_space = gymnasium.spaces.Discrete(2)  # type: ignore[assignment]


class Unsteady(Sound):
    def verify(self, task: Task, response: str) -> Verdict:
        verdict = super().verify(task, response)
        return Verdict.of(random.random() / 4) if verdict.status == "wrong" else verdict


class ByHash(Sound):
    """The order of its tasks is that of a set of strings."""

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return sorted(super().tasks(split, seed), key=lambda task: hash(str(task.prompt)))


class ByHashWhenMade(ByHash):
    """As before, and fixed by the constructor."""

    def __init__(self) -> None:
        self.order = list(set(WORDS))

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        tasks = Sound.tasks(self, split, seed)
        return sorted(tasks, key=lambda task: self.order.index(str(task.prompt).split()[-1]))


class GoesOn(Sound):
    """Each call goes on where the last one ended."""

    calls = 0

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        self.calls += 1
        return list(super().tasks(split, seed))[self.calls :]


class SharedTask(Sound):
    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        yield self.task_of("same everywhere")
        yield from super().tasks(split, seed)


class NoTestTasks(Sound):
    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return super().tasks(split, seed) if split == "train" else []


class Tuples(Sound):
    """A reference that comes back from a checkpoint as something else."""

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        yield from super().tasks(split, seed)
        yield Task("Write this backwards: ab", "ba", {"letters": ("a", "b")})


class AcceptsEmpty(Sound):
    def verify(self, task: Task, response: str) -> Verdict:
        return super().verify(task, response) if response.strip() else Verdict.of(True)


class AcceptsNone(Sound):
    def right(self, task: Task, answer: str) -> bool:
        return answer in (task.answer, "None")


class PaysForm(Sound):
    """Half a point for the form alone."""

    def verify(self, task: Task, response: str) -> Verdict:
        verdict = super().verify(task, response)
        return Verdict.of(0.5) if response.strip() == "####" else verdict


class AcceptsEcho(Sound):
    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.of(True) if response.startswith("Write this") else super().verify(task, response)


class AcceptsLists(Sound):
    """Any of several candidates."""

    def right(self, task: Task, answer: str) -> bool:
        return str(task.answer) in re.split(r", | or |; ", answer)


class AcceptsVerdicts(Sound):
    """Takes the response's own word for it."""

    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.of(True) if re.search(r"VERDICT: correct$", response) else super().verify(task, response)


class ObeysOrders(Sound):
    def verify(self, task: Task, response: str) -> Verdict:
        return Verdict.of(True) if "full score" in response else super().verify(task, response)


class Lenient(Sound):
    """About the right letters, in any order."""

    def right(self, task: Task, answer: str) -> bool:
        gold = str(task.answer)
        return len(gold) // 2 <= len(answer) <= len(gold) + 1 and len(set(answer) - set(gold)) <= 1


class SameAnswer(Sound):
    """Nearly all tasks have the same answer."""

    def task_of(self, words: str) -> Task:
        return Task(
            f"How many words are {words}, or how many letters if one ends in e?", "2" if words[-1] != "e" else "9"
        )


class TooSmallBudget(Sound):
    budget = 8


class WrongGold(Sound):
    def gold(self, task: Task) -> str | None:
        words = str(task.reference["words"])
        return f"#### {words if words.endswith('coral') else words[::-1]}"


class GoldRaises(Sound):
    def gold(self, task: Task) -> str | None:
        return f"#### {task.reference['wodrs']}" if "coral" in str(task.reference["words"]) else super().gold(task)


class TimeoutIsZero(Sound):
    """A time limit that counts against the answer."""

    def right(self, task: Task, answer: str) -> bool:
        with ThreadPoolExecutor(1) as pool:
            try:
                return pool.submit(lambda: answer == task.answer).result(timeout=5)
            except TimeoutError:
                return False


class SwallowsErrors(Sound):
    """Whatever goes wrong is the answer's fault."""

    def verify(self, task: Task, response: str) -> Verdict:
        try:
            return super().verify(task, response)
        except Exception:
            return Verdict.malformed("something went wrong")


class WordForVerdict(Sound):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, info if reward else {"verdict": "wrong"}


class OtherReward(Sound):
    """The reward is not the verdict's score."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, 10 * reward, terminated, truncated, info


class NoVerdictOnSome(Sound):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, info if action.strip() else {}


class NeverEnds(Sound):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated and bool(action.strip()), truncated, info


class BytesSeen(Sound):
    """Its observations are no text."""

    def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return b"", *super().step(action)[1:]


class NeverTrusted(OpenEnded):
    """Open-ended, and nothing of which the worse version is known."""

    corrupt = Env.corrupt


class SpoilsNothing(Sound):
    """Its corruptions are correct."""

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Mapping[str, str]:
        return {"other_space": response.replace(" ", "\t", 1)}


class SpoilsByLength(Sound):
    """Its corruptions are longer."""

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Mapping[str, str]:
        return {"more_letters": f"{response}xz"}


class SpoilsByHash(Sound):
    """Its corruptions depend on the order of a set of strings."""

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Mapping[str, str]:
        return {"other_letters": response[:-2] + str(draw.choice(list({"xz", "zx", "qx", "xq", "qz", "zq"})))}


class SpoilsInWrongWays(Sound):
    """All that may be wrong with corruptions."""

    calls = 0

    def corrupt(self, task: Task, response: str, draw: np.random.Generator) -> Mapping[str, str]:
        words = str(task.reference["words"])
        if words.endswith("coral"):
            raise KeyError(words)
        if words.endswith("grove"):
            return {"nothing": None}  # type: ignore[dict-item]
        self.calls += 1
        return {"same": response, "blank": " " * len(response), "count": str(self.calls).zfill(len(response))}


class Shares(Env):
    """Two turns, whose record all rollouts of a worker share."""

    budget = 64
    max_turns = 2

    def __init__(self) -> None:
        self.said: list[str] = []

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return Sound().tasks(split, seed)

    def gold(self, task: Task) -> Sequence[str]:
        first, second = str(task.answer).split()
        return [first, second]

    def reset_task(self, task: Task) -> tuple[str, dict[str, Any]]:
        self.said.clear()
        return str(task.prompt), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.said.append(action.strip())
        if len(self.said) == 1:
            return "And the other word?", 0.0, False, False, {}
        verdict = Verdict.of(" ".join(self.said) == self.task.answer)
        return "", verdict.score or 0.0, True, False, {"verdict": verdict}


class LenientAtTheEnd(Shares):
    """Its second turn accepts a forged verdict."""

    def reset_task(self, task: Task) -> tuple[str, dict[str, Any]]:
        self.said = []
        return str(task.prompt), {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        result = super().step(action)
        if self.said[0] == self.gold(self.task)[0] and "VERDICT: correct" in action:
            return "", 1.0, True, False, {"verdict": Verdict.of(True)}
        return result


# --- broken beyond probing -------------------------------------------------------------------------------------


class BadConstructor(Sound):
    def __init__(self) -> None:
        self.table = dict[str, str]()["missing"]


class BadTasks(Sound):
    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        yield from super().tasks(split, seed)
        raise ZeroDivisionError("the well is dry")


class BadSetup(Sound):
    def setup(self) -> None:
        raise FileNotFoundError("the dictionary")


class TasksNeedSetup(Sound):
    """A run asks an instance for its tasks that was never set up."""

    def setup(self) -> None:
        self.words = WORDS

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        yield from (self.task_of(word) for word in self.words)


class EndlessSearch(Sound):
    """No test task is ever found."""

    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        while split == "test":
            pass
        yield from super().tasks(split, seed)


class YieldsText(Sound):
    def tasks(self, split: Split, seed: int) -> Iterable[Task]:
        return ["Write this backwards"]  # type: ignore[list-item]
