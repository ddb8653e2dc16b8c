"""Which past verdicts a changed verifier would turn: a run's rollouts, scored again.

    report, rows = replay(Path("runs/mine"), reward="my_math.py:Answer")

Scored again is what a verifier saw: one response to one prompt, ended by the model itself. What was cut at its budget
was malformed without being verified, and stays so; episodes of several turns, and responses that were compared with
each other, are no reward's to score. All of that is counted apart. A verdict without a score is an error, before and
now, and turns nothing.
"""

from __future__ import annotations

import gzip
import json
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from k2rl import plugins
from k2rl.env import Env, SingleTurnEnv
from k2rl.errors import UserError, did_you_mean, users_code
from k2rl.eval_rewards import guarded, in_threads
from k2rl.intervals import wilson_clustered
from k2rl.progress import bar
from k2rl.recipe_files import load_saved
from k2rl.terminal import shown
from k2rl.types import SCHEMA_VERSION, Rollout, Status, Task, Verdict

Verify = Callable[[Task, str], Verdict]

_PROBED = 16
"""Responses by which a reward shows whether an environment's answers are of its kind."""
_FEWEST = 4
"""Correct ones among them, for saying that it accepts none of them."""


class NotScored(StrEnum):
    """Why a rollout is not scored again."""

    CUT = "cut"
    MULTI_TURN = "multi_turn"
    COMPARED = "compared"
    NO_VERDICT = "no_verdict"
    NO_RESPONSE = "no_response"


_REASONS = {
    NotScored.MULTI_TURN: "its episodes have several turns",
    NotScored.COMPARED: "its responses are compared with each other, not verified",
    NotScored.NO_VERDICT: "it gives returns and no verdicts",
    NotScored.CUT: "all its responses were cut at their budget, and never verified",
    NotScored.NO_RESPONSE: "there are no responses",
}


@dataclass(frozen=True)
class Past:
    """A response and the verdict it got. `iteration` and `line` say where in `rollouts/` it is, from 1."""

    iteration: int
    line: int
    task: Task
    k: int
    response: str
    verdict: Verdict


@dataclass(frozen=True)
class Replayed:
    """The same with the verdict of now."""

    past: Past
    verdict: Verdict

    @property
    def scored(self) -> bool:
        """Whether there was a verdict, and is one."""
        return self.past.verdict.scored and self.verdict.scored

    @property
    def turned(self) -> bool:
        return self.scored and self.past.verdict.status is not self.verdict.status

    def to_json(self) -> dict[str, Any]:
        """Where it is and both verdicts; the texts too where it turned."""
        past = self.past
        texts = {"prompt": prompt(past.task), "response": past.response} if self.turned else {}
        return {
            "env": past.task.env,
            "iteration": past.iteration,
            "line": past.line,
            "task_id": past.task.id,
            "k": past.k,
            "turned": self.turned,
            "before": past.verdict.to_json(),
            "now": self.verdict.to_json(),
            **texts,
        }


@dataclass
class Recorded:
    """What a run's `rollouts/` holds, by env: what can be scored again, and how much can't. `damaged` names the files
    that end too early, of which the whole lines are here."""

    rollouts: dict[str, list[Past]] = field(default_factory=lambda: defaultdict(list))
    not_scored: dict[str, Counter[NotScored]] = field(default_factory=lambda: defaultdict(Counter))
    damaged: list[str] = field(default_factory=list)

    @property
    def envs(self) -> list[str]:
        return sorted({*self.rollouts, *self.not_scored})


def prompt(task: Task) -> str:
    """A task's prompt as one text."""
    return task.prompt if isinstance(task.prompt, str) else "\n\n".join(str(m.get("content")) for m in task.prompt)


def replay(
    run: Path,
    reward: str | None = None,
    args: Mapping[str, Any] | None = None,
    envs: Sequence[str] = (),
    *,
    limit: int | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> tuple[dict[str, Any], list[Replayed]]:
    """The report behind `k2rl eval-rewards replay`, and the rollouts scored again, in their order.

    Args:
        reward: a name, module:Class or file.py:Class; None: each env's own verifier, as the run's recipe makes it.
        args: the reward's.
        envs: those to score; default: all of the reward's kind. Those left out are in the report, with the reason.
        limit: rollouts per env, evenly spread over the run.
        workers: threads, each with a verifier of its own; default: twice the cores, 8 at most.

    Raises:
        UserError: no run, no rollouts or no such env in it, a reward that can't be made, or nothing left to score.
    """
    recorded = read(run, quiet)
    for name in envs:
        if name not in recorded.envs:
            known = f"{did_you_mean(name, recorded.envs)}: the run has {', '.join(recorded.envs)}"
            raise UserError(f"--env {name}: no such environment in {run}{known}")
    made: list[Env] = []
    make = _verifiers(run, reward, args, made)
    chosen, left_out = list(envs) or recorded.envs, {}
    asked: list[Past] = []
    start = time.perf_counter()
    try:
        for name in chosen:
            pasts = recorded.rollouts.get(name, [])
            why = _unfit(pasts, recorded.not_scored[name], partial(make, name), probe=bool(reward and not envs))
            if why:
                left_out[name] = why
            else:
                asked += _spread(pasts, limit)
        if not asked:
            reasons = "; ".join(f"{name}: {why}" for name, why in left_out.items())
            raise UserError(shown(f"{run} has nothing to score: {reasons}"))
        local = threading.local()

        def ask(past: Past) -> Replayed:
            verifiers = local.__dict__.setdefault("verifiers", {})
            if past.task.env not in verifiers:
                verifiers[past.task.env] = make(past.task.env)
            return Replayed(past, _verdict(verifiers[past.task.env], past))

        found = in_threads(ask, asked, lambda past: f"iteration {past.iteration}, line {past.line}", workers, quiet)
    finally:
        for env in made:
            env.close()
    return _report(run, reward, recorded, left_out, found, time.perf_counter() - start), found


# --- what a run holds ------------------------------------------------------------------------------------------------


def read(run: Path, quiet: bool = False) -> Recorded:
    """The verdicts of a run, whether it is over, under way or was killed.

    Raises:
        UserError: there is no run, or none of its rollouts.
    """
    if not run.is_dir():
        raise UserError(f"no run directory {run}: give the folder that `k2rl train` wrote")
    files = sorted(p for p in (run / "rollouts").glob("*.jsonl.gz") if p.name.split(".")[0].isdecimal())
    recorded = Recorded()
    with bar("reading", quiet) as show:
        for n, path in enumerate(files):
            for line, rollout in _rollouts(path, recorded.damaged):
                _sort(recorded, int(path.name.split(".")[0]), line, rollout)
            show(n + 1, len(files))
    if not recorded.envs:
        raise UserError(f"{run} has no rollouts: an iteration has to be over before there is anything to score again")
    for env, counts in recorded.not_scored.items():
        for kind in (NotScored.MULTI_TURN, NotScored.COMPARED):
            if counts[kind]:  # An environment's way: what looks otherwise is of the same kind.
                counts[kind] += len(recorded.rollouts.pop(env, []))
    return recorded


def _rollouts(path: Path, damaged: list[str]) -> Iterator[tuple[int, Rollout]]:
    """The rollouts of a file with the numbers of their lines, as far as it is whole."""
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogatepass") as file:
            for number, text in enumerate(file, 1):
                yield number, Rollout.from_json(json.loads(text))
    except (EOFError, zlib.error, gzip.BadGzipFile, ValueError, KeyError, TypeError):
        damaged.append(path.name)
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None


def _sort(recorded: Recorded, iteration: int, line: int, rollout: Rollout) -> None:
    env, why = rollout.task.env, _not_scored(rollout)
    if why is not None:
        recorded.not_scored[env][why] += 1
        return
    assert rollout.verdict is not None
    past = Past(iteration, line, rollout.task, rollout.k, rollout.text[0], rollout.verdict)
    recorded.rollouts[env].append(past)


def _not_scored(rollout: Rollout) -> NotScored | None:
    if len(rollout.text) > 1:
        return NotScored.MULTI_TURN
    if rollout.cut:
        return NotScored.CUT
    if not rollout.text:
        return NotScored.NO_RESPONSE
    if rollout.verdict is None:
        return NotScored.NO_VERDICT
    return NotScored.COMPARED if rollout.verdict.status in (Status.PENDING, Status.RANKED) else None


def _spread(pasts: Sequence[Past], limit: int | None) -> Sequence[Past]:
    """So many at most, from all parts of the run."""
    n = len(pasts) if limit is None else min(limit, len(pasts))
    return [pasts[i * len(pasts) // n] for i in range(n)]


# --- who verifies ----------------------------------------------------------------------------------------------------


def _verifiers(
    run: Path, reward: str | None, args: Mapping[str, Any] | None, made: list[Env]
) -> Callable[[str], Verify]:
    """From the name of an env to a verifier for one thread; environments made for it are added to `made`.

    Raises:
        UserError: the reward can't be made, or the run has no recipe. Calls raise it where an env can't be made, or
            has no method that verifies a response.
    """
    if reward is not None:
        plugins.make_reward(reward, args)  # What is wrong with it shows before anything runs.

        def by_reward(name: str) -> Verify:
            own = plugins.make_reward(reward, args)
            return lambda task, response: own(response, reference(task))

        return by_reward
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run} has no recipe.yaml, which says what its verifiers are: give one by --reward")
    recipe = load_saved(run / "recipe.yaml")

    def by_env(name: str) -> Verify:
        if name not in recipe.envs:
            raise UserError(f"the recipe of {run} has no such environment")
        env = plugins.make_env(recipe.envs[name].id, recipe.envs[name].args)
        if not isinstance(env, SingleTurnEnv):
            raise UserError("it is no SingleTurnEnv, whose `verify` could be asked: name a --reward")
        made.append(env)
        with users_code("its setup()"):
            env.setup()
        return env.verify

    return by_env


def reference(task: Task) -> Mapping[str, Any]:
    """What a reward is called with beside the response: the task's reference, and its answer."""
    return task.reference if task.answer is None else {"answer": task.answer, **task.reference}


def _unfit(
    pasts: Sequence[Past], not_scored: Mapping[NotScored, int], make: Callable[[], Verify], probe: bool
) -> str | None:
    """Why an environment's rollouts can't be scored again by this verifier, if so; `probe` asks it about some."""
    if not pasts:
        return _REASONS[max(not_scored, key=lambda kind: not_scored[kind])]
    try:
        verify = make()
    except UserError as error:
        return str(error)
    if not probe:
        return None
    correct = [past for past in pasts if past.verdict.status is Status.CORRECT]
    verdicts = [_verdict(verify, past) for past in _spread(correct or pasts, _PROBED)]
    if not any(verdict.scored for verdict in verdicts):
        return f"not of the reward's kind: {verdicts[0].detail or verdicts[0].status}"
    if len(correct) >= _FEWEST and not any(verdict.status is Status.CORRECT for verdict in verdicts):
        return f"not of the reward's kind: it accepts none of {len(verdicts)} responses that were correct"
    return None


def _verdict(verify: Verify, past: Past) -> Verdict:
    try:
        return guarded(lambda: verify(past.task, past.response))
    except UserError as error:
        return Verdict.failure(Status.VERIFIER_ERROR, str(error))


# --- what came of it -------------------------------------------------------------------------------------------------


def _report(
    run: Path,
    reward: str | None,
    recorded: Recorded,
    left_out: Mapping[str, str],
    found: Sequence[Replayed],
    wall_s: float,
) -> dict[str, Any]:
    by_env: dict[str, list[Replayed]] = defaultdict(list)
    for one in found:
        by_env[one.past.task.env].append(one)
    return {
        "schema_version": SCHEMA_VERSION,
        "run": str(run),
        "reward": reward,
        "envs": {
            env: _counts(own) | {kind.value: recorded.not_scored[env][kind] for kind in NotScored}
            for env, own in by_env.items()
        },
        "all": _counts(found),
        "left_out": {
            env: {"reason": why, "rollouts": len(recorded.rollouts.get(env, [])) + recorded.not_scored[env].total()}
            for env, why in left_out.items()
        },
        "damaged": recorded.damaged,
        "per_second": len(found) / wall_s,
    }


def _counts(found: Sequence[Replayed]) -> dict[str, Any]:
    """`n` verdicts of before and now, and how they differ; errors apart. `table`: how many went from which status to
    which, errors among them."""
    both = [one for one in found if one.scored]
    table: dict[str, Counter[str]] = defaultdict(Counter)
    tasks: dict[str, list[bool]] = defaultdict(list)
    for one in found:
        table[one.past.verdict.status][one.verdict.status] += 1
    for one in both:
        tasks[one.past.task.id].append(one.turned)
    turned = [one for one in both if one.turned]
    return {
        "n": len(both),
        "turned": len(turned),
        "share_turned": len(turned) / len(both) if both else None,
        "ci95": {"share_turned": wilson_clustered([(sum(t), len(t)) for t in tasks.values()]) if both else None},
        "now_correct": sum(one.verdict.status is Status.CORRECT for one in turned),
        "no_longer_correct": sum(one.past.verdict.status is Status.CORRECT for one in turned),
        "scores_changed": sum(not one.turned and one.past.verdict.score != one.verdict.score for one in both),
        "errors": sum(not one.verdict.scored for one in found),
        "errors_before": sum(not one.past.verdict.scored for one in found),
        "table": {before: dict(now) for before, now in table.items()},
    }


def examples(found: Sequence[Replayed], most: int, of_a_kind: int = 3) -> list[Replayed]:
    """Some that turned, a few of each env and each way of turning; from correct or to it first."""
    kinds: dict[tuple[str, Status, Status], list[Replayed]] = defaultdict(list)
    for one in found:
        if one.turned:
            kinds[one.past.task.env, one.past.verdict.status, one.verdict.status].append(one)
    order = sorted(kinds, key=lambda kind: Status.CORRECT not in kind[1:])
    return [one for kind in order for one in kinds[kind][:of_a_kind]][:most]
