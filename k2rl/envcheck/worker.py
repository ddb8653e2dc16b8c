"""The watched side: the environment under test in a process of its own, which may hang or die.

One request a line on stdin, one reply a line on stdout, both JSON. All calls of the environment run in one thread
that is not the main one, as in training: a grader that relies on signals shows here.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import math
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import gymnasium

from k2rl import plugins, rng
from k2rl.env import Env, GymTextEnv
from k2rl.errors import UnavailableError, UserError, own_frame, users_code
from k2rl.types import Task, Verdict

MOST_TURNS = 50
"""Turns after which an episode of an environment without `max_turns` is left."""


class InjectedTimeoutError(subprocess.TimeoutExpired, multiprocessing.TimeoutError, TimeoutError):
    """A time-out under all the names that a grader may know it by."""

    def __init__(self) -> None:
        super().__init__("a time-out injected by `k2rl env check`", 0.0)


def serve() -> None:
    """The process's main function: the first line says how to make the environment, the others what to do."""
    _die_with_parent()
    thread = threading.Thread(target=_loop)
    thread.start()
    thread.join()


def _loop() -> None:
    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as replies:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # What the environment reads or prints must not mix with the replies.
            os.dup2(null, stream)
        warnings.simplefilter("ignore")
        worker: _Worker | None = None
        for line in requests:
            request, reply = json.loads(line), dict[str, Any]()
            try:
                if worker is None:
                    worker = _Worker(request)
                    reply = {"value": worker.describe()}
                else:
                    reply = {"value": getattr(worker, request.pop("do"))(**request)}
            except UserError as error:
                reply = {"user_error": str(error), "unavailable": isinstance(error, UnavailableError)}
            except Exception as error:
                reply = {"raised": described(error)}
            replies.write(json.dumps(reply).encode() + b"\n")
            replies.flush()


def make(origin: Mapping[str, Any]) -> Env:
    """The environment of an origin (`subject.origin_of`)."""
    if "id" in origin:
        return plugins.make_env(origin["id"], origin["args"])
    for name, file in origin["modules"].items():
        _import(name, file)
    made = pickle.loads(base64.b64decode(origin["pickle"]))
    return made if isinstance(made, Env) else made()


def _import(name: str, file: str) -> None:
    """Import a module by name or, as plug-ins given as a file have names of their own, from its file."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


def described(error: Exception) -> str:
    """`KeyError: 'x' (my_env.py:12)`."""
    frame = own_frame(error)
    first_line = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first_line} ({frame.filename}:{frame.lineno})"


class _Worker:
    """What may be asked; every answer is JSON.

    As in a run, one instance gives the tasks, and another one, on which `setup()` was called, plays.
    """

    def __init__(self, origin: Mapping[str, Any]) -> None:
        self.template, self.env = make(origin), make(origin)
        self.inner: gymnasium.Env[Any, Any] = self.env
        if isinstance(self.env, GymTextEnv):
            self.inner = self.env.inner.unwrapped
        with users_code("setup()"):
            self.env.setup()

    def describe(self) -> dict[str, Any]:
        return {
            "name": type(self.inner).__name__,
            "budget": self.env.budget,
            "max_turns": self.env.max_turns,
            "waived": dict(getattr(self.inner, "waived_probes", {})),
            "plain": isinstance(self.env, GymTextEnv),
            "open_ended": self.env.open_ended,
            "corrupts": type(self.env).corrupt is not Env.corrupt,
        }

    def tasks(self, split: str, seed: int, n: int, seconds: float) -> dict[str, Any]:
        """The first `n` tasks, fewer where that takes longer; `unfit`: what JSON does not give back as it was."""
        found, unfit, end = [], [], time.monotonic() + seconds
        with users_code(f"tasks({split!r}, {seed})"):
            for task in self.template.tasks(split, seed):  # type: ignore[arg-type]
                if not isinstance(task, Task):
                    raise UserError(f"tasks({split!r}, {seed}) must yield k2rl.Task, got {type(task).__name__}")
                if why := _unfit(task):
                    unfit.append(f"{why}, in {task!r:.200}")
                else:
                    found.append(task.to_json())
                if len(found) + len(unfit) >= n or time.monotonic() > end:
                    break
        return {"tasks": found, "unfit": unfit}

    def golds(self, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for task in map(Task.from_json, tasks):
            try:
                gold = self.template.gold(task)
                found.append({"gold": gold if gold is None or isinstance(gold, str) else [str(g) for g in gold]})
            except Exception as error:
                found.append({"raised": described(error)})
        return found

    def corruptions(
        self, tasks: Sequence[Mapping[str, Any]], responses: Sequence[str], draw: int
    ) -> list[dict[str, Any]]:
        """What `corrupt` makes of a response to each task, with chance drawn by the task and the number `draw`."""
        found: list[dict[str, Any]] = []
        for task, response in zip(map(Task.from_json, tasks), responses, strict=True):
            try:
                made = dict(self.template.corrupt(task, response, rng.generator("env-check", task.id, draw)))
                found.append(_unlike_texts(made) or {"made": made})
            except Exception as error:
                found.append({"raised": described(error)})
        return found

    def play(self, task: Mapping[str, Any], turns: Sequence[str], go_on: bool) -> dict[str, Any]:
        """An episode; with `go_on` the last turn is repeated until it is over."""
        return self._play(Task.from_json(task), turns, go_on)

    def together(self, tasks: Sequence[Mapping[str, Any]], turns: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
        """Episodes of one worker that take turns, each of which should know nothing of the others."""
        episodes = [_Episode(self.env, Task.from_json(t), s) for t, s in zip(tasks, turns, strict=True)]
        while any([e.advance() for e in episodes]):  # a list: each of them takes its turn
            pass
        return [e.to_json() for e in episodes]

    def interrupted(
        self, task: Mapping[str, Any], turns: Sequence[str], places: int, seconds: float
    ) -> list[dict[str, Any]]:
        """The episode once for each of the outermost `places` in the code of `step`, with a time-out raised there."""
        seen = _Interrupter(None)
        self._play(Task.from_json(task), turns, False, seen)
        order = sorted(seen.depths, key=seen.depths.__getitem__)[:places]
        results, end = [], time.monotonic() + seconds
        for place in order:
            if time.monotonic() > end:
                break
            played = self._play(Task.from_json(task), turns, False, _Interrupter(place))
            results.append({"place": f"{os.path.basename(place[0])}:{place[1]}", "play": played})
        return results

    def gymnasium(self) -> None:
        """gymnasium's own checker on a copy."""
        from gymnasium.utils.env_checker import check_env

        env = self.inner if isinstance(self.env, GymTextEnv) else self.env.spawn()
        check_env(env, skip_render_check=True)

    def _play(
        self, task: Task, turns: Sequence[str], go_on: bool, interrupter: _Interrupter | None = None
    ) -> dict[str, Any]:
        limit = self.env.max_turns or MOST_TURNS
        repeated = [*turns, *[turns[-1]] * (limit - len(turns))] if go_on else turns
        episode = _Episode(self.env, task, repeated, interrupter)
        while episode.advance():
            pass
        return episode.to_json()


class _Episode:
    """One episode with given actions, and all that is wrong with what the environment returns."""

    def __init__(self, env: Env, task: Task, turns: Sequence[str], interrupter: _Interrupter | None = None) -> None:
        self.env, self.turns = env.spawn(), turns
        self.interrupter = interrupter
        self.taken, self.over, self.returned, self.seconds = 0, False, 0.0, 0.0
        self.verdict: Verdict | None = None
        self.seen: list[str] = []
        self.problems: list[str] = []
        self.raised = ""
        self._call("reset", lambda: self._look(*self.env.reset(options={"task": task})))

    def advance(self) -> bool:
        """Take the next turn; False when there is none."""
        if self.over or self.raised or self.taken == len(self.turns):
            return False
        action = self.turns[self.taken]
        self.taken += 1
        self._call("step", lambda: self._take(self.env.step(action)))
        return True

    def to_json(self) -> dict[str, Any]:
        return {
            "turns": self.taken,
            "over": self.over,
            "verdict": None if self.verdict is None else self.verdict.to_json(),
            "returned": self.returned,
            "seconds": self.seconds,
            "seen": self.seen,
            "problems": self.problems,
            "raised": self.raised,
        }

    def _call(self, what: str, call: Callable[[], None]) -> None:
        start = time.perf_counter()
        sys.settrace(self.interrupter if what == "step" else None)
        try:
            call()
        except Exception as error:
            self.raised = f"{what} raised {described(error)}"
        finally:
            sys.settrace(None)
            self.seconds += time.perf_counter() - start

    def _look(self, observation: Any, info: Any) -> None:
        if not isinstance(observation, str):
            self.problems.append(f"an observation is text, got {type(observation).__name__}")
        messages = info.get("messages") if isinstance(info, Mapping) else None
        self.seen.append("\n".join(str(m["content"]) for m in messages) if messages else str(observation))

    def _take(self, result: Any) -> None:
        observation, reward, terminated, truncated, info = result
        self._look(observation, info)
        number = isinstance(reward, int | float) and math.isfinite(reward)
        if not number:
            self.problems.append(f"a reward is a finite number, got {reward!r}")
        self.returned += float(reward) if number else 0.0
        if not isinstance(info, Mapping):
            self.problems.append(f"info is a mapping, got {type(info).__name__}")
        elif (verdict := info.get("verdict")) is not None:
            self._judge(verdict, reward)
        self.over = bool(terminated or truncated)
        if not self.over and self.env.max_turns == self.taken:
            self.problems.append(f"the episode goes on after max_turns = {self.env.max_turns}")
            self.over = True

    def _judge(self, verdict: Any, reward: Any) -> None:
        if not isinstance(verdict, Verdict):
            self.problems.append(f"info['verdict'] is a k2rl.Verdict, got {verdict!r:.60}")
            return
        self.verdict = verdict
        if reward != (verdict.score or 0.0):
            self.problems.append(f"the reward is {reward!r}, the verdict's score {verdict.score!r}")


class _Interrupter:
    """A trace function that notes each line run and its depth of calls, or raises once at a given line."""

    def __init__(self, place: tuple[str, int] | None) -> None:
        self.place = place
        self.depths: dict[tuple[str, int], int] = {}
        self.depth = 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        here = (frame.f_code.co_filename, frame.f_lineno)
        if event == "call":
            self.depth += 1
        elif event == "return":
            self.depth -= 1
        elif event == "line" and here[0] != __file__:
            self.depths.setdefault(here, self.depth)
            if here == self.place:
                raise InjectedTimeoutError
        return self


def _unlike_texts(made: Mapping[Any, Any]) -> dict[str, str]:
    """What is wrong with corruptions that are no texts under a name; empty where all are."""
    wrong = next((item for item in made.items() if not all(isinstance(part, str) for part in item)), None)
    return {} if wrong is None else {"raised": f"a corruption is a name and a text, got {wrong!r:.60}"}


def _unfit(task: Task) -> str:
    """Why a task can't be stored in a checkpoint, or ""."""
    try:
        stored = Task.from_json(json.loads(json.dumps(task.to_json())))
    except (TypeError, ValueError) as error:
        return f"the task is no JSON: {error}"
    if (stored.reference, stored.answer, stored.budget) != (dict(task.reference), task.answer, task.budget):
        return "the reference changes when it is stored as JSON (a tuple? a key that is no text?)"
    return ""


def _die_with_parent() -> None:
    """On Linux the kernel ends this process with its parent, even while a grader holds the interpreter."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
