"""Environments in processes of their own: the same rollouts, and what becomes of those whose process is lost."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Sequence
from typing import Any

import pytest
from test_rollout import doubling, driver, flat, say, tasks

from k2rl.chat import Chat
from k2rl.cluster.child import ChildProcess
from k2rl.cluster.worker import Job
from k2rl.envpool import EnvPool
from k2rl.errors import UserError
from k2rl.loop import train
from k2rl.protocols import Request
from k2rl.recipe import EnvSpec, Recipe, RunConfig
from k2rl.recipe_files import load
from k2rl.samplers.scripted import ScriptedSampler
from k2rl.types import Status

pytestmark = pytest.mark.cluster


@pytest.fixture
def chat(tiny_tokenizer: Any) -> Chat:
    return Chat(copy.deepcopy(tiny_tokenizer))


def remote(run: RunConfig | None = None, workers: int = 1, **specs: EnvSpec) -> EnvPool:
    environments = {name: (spec.id, spec.args) for name, spec in specs.items()}
    job = Job("env worker", "k2rl.remote_env:EnvHost", environments, 120)
    return EnvPool(specs, workers, run, lambda n: ChildProcess(job))


def saying(chat: Chat, task: str, word: str) -> Any:
    """Plays TwoTurn right, but for the second turn of one task's first rollout."""
    right = doubling(chat)

    def script(request: Request, index: int) -> Sequence[int]:
        text = chat.tokenizer.decode(list(request.prompt_ids))
        return say(chat, word) if f"Say {task}<" in text and "Double" in text else right(request, index)

    return script


def test_rollouts_are_those_of_threads_and_answered_elsewhere(chat: Chat) -> None:
    both = []
    for some in (
        EnvPool({"d": EnvSpec(id="two_turn_env:TwoTurn")}, 2),
        remote(workers=2, d=EnvSpec(id="two_turn_env:TwoTurn")),
    ):
        groups = driver(some, ScriptedSampler(doubling(chat)), chat).collect(tasks(some, "d", 4), 1, lambda _: 1.0)
        both.append([r.to_json() for r in flat(groups)])
        some.close()
    assert both[0] == both[1]
    some = remote(workers=2, d=EnvSpec(id="two_turn_env:Deadly"))
    groups = driver(some, ScriptedSampler(doubling(chat)), chat).collect(tasks(some, "d", 4), 1, lambda _: 1.0)
    said = {chat.tokenizer.decode(list(s.ids)) for r in flat(groups) for s in r.segments if s.source == "env"}
    processes = {int(found[1]) for text in said if (found := re.search(r"Double it (\d+)", text))}
    assert len(processes) == 2
    assert os.getpid() not in processes
    some.close()


def test_a_lost_process_costs_the_call_that_ended_it_and_the_rest_is_replayed(chat: Chat) -> None:
    some = remote(d=EnvSpec(id="two_turn_env:Deadly"))
    sampler = ScriptedSampler(saying(chat, "2", "x"), per_poll=2)
    groups = driver(some, sampler, chat, group_size=2).collect(tasks(some, "d", 3), 1, lambda _: 1.0)
    statuses = {(r.task.prompt, r.k): r.verdict.status for r in flat(groups) if r.verdict}
    assert {status for (prompt, _), status in statuses.items() if prompt == "Say 2"} == {Status.INFRA_ERROR}
    assert {status for (prompt, _), status in statuses.items() if prompt != "Say 2"} == {Status.CORRECT}
    assert some.generations[0] >= 1
    some.close()


def test_what_an_environment_raises_there_is_told_with_its_place(chat: Chat) -> None:
    some = remote(b=EnvSpec(id="two_turn_env:Broken"))
    sampler = ScriptedSampler(lambda request, index: say(chat, "x" if index else "yes"))
    (group,) = driver(some, sampler, chat, group_size=2).collect(tasks(some, "b", 1), 1, lambda _: 1.0)
    right, wrong = (r.verdict for r in group.rollouts)
    assert right is not None
    assert right.status is Status.CORRECT
    assert wrong is not None
    assert wrong.status is Status.VERIFIER_ERROR
    assert "RuntimeError: the grader fell over (verify, line" in wrong.detail
    some.close()


def test_one_that_hangs_is_given_up_with_its_process(chat: Chat) -> None:
    some = remote(RunConfig(patience_s=0.5, stuck_s=3.0), h=EnvSpec(id="two_turn_env:Hanging"))
    sampler = ScriptedSampler(saying(chat, "0", "x"))
    groups = driver(some, sampler, chat, group_size=1).collect(tasks(some, "h", 3), 1, lambda _: 1.0)
    statuses = [r.verdict.status for r in flat(groups) if r.verdict]
    assert statuses == [Status.TIMEOUT, Status.CORRECT, Status.CORRECT]
    some.close()


def test_one_that_no_machine_can_run_is_left_out_or_refused() -> None:
    broken, nowhere = EnvSpec(id="two_turn_env:Broken"), {"setup_only": True}
    some = remote(b=broken, n=EnvSpec(id="two_turn_env:Nowhere", args=nowhere, optional=True))
    assert some.left_out == {"n": "it needs a jail"}
    some.close()
    with pytest.raises(UserError, match="env n: it needs a jail"):
        remote(b=broken, n=EnvSpec(id="two_turn_env:Nowhere", args=nowhere))


def test_a_run_is_the_same_with_its_environments_elsewhere(tmp_path: Any) -> None:
    small = ["run.iterations=2", "run.eval_tasks=0", "rollout.tasks=8", "rollout.group_size=4", "run.threads=1"]
    rows = []
    for name, elsewhere in (("here", "false"), ("there", "true")):
        train(
            load(Recipe, "quickstart", [*small, f"rollout.worker_processes={elsewhere}"]), tmp_path / name, quiet=True
        )
        rows.append((tmp_path / name / "model" / "model.safetensors").read_bytes())
    assert rows[0] == rows[1]
