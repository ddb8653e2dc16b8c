"""Rolling out: groups complete, multi-turn end to end, failures contained, partial rollouts go on identically."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from k2rl.chat import Chat
from k2rl.curriculum import pool
from k2rl.envpool import EnvPool
from k2rl.protocols import Request
from k2rl.recipe import EnvSpec
from k2rl.rollout import RolloutDriver
from k2rl.samplers.scripted import ScriptedSampler
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.types import End, Group, Rollout, Status, Task, Verdict

ENVS = "two_turn_env"


@pytest.fixture
def chat(tiny_tokenizer: Any) -> Chat:
    return Chat(copy.deepcopy(tiny_tokenizer))


def envs(**specs: EnvSpec) -> EnvPool:
    return EnvPool(specs, workers=2)


def tasks(pool_of_envs: EnvPool, name: str, count: int) -> list[Task]:
    return pool(name, pool_of_envs.templates[name], "train", 0, count)


def say(chat: Chat, text: str, stop: bool = True) -> tuple[int, ...]:
    return (*chat.encode_untrusted(text), *([chat.end_id] if stop else []))


def driver(pool_of_envs: EnvPool, sampler: Any, chat: Chat, group_size: int = 3, **settings: Any) -> RolloutDriver:
    return RolloutDriver(pool_of_envs, sampler, chat, seed=0, group_size=group_size, **settings)


def doubling(chat: Chat) -> Callable[[Request, int], Sequence[int]]:
    """Plays TwoTurn right: reads its own history."""

    def script(request: Request, index: int) -> Sequence[int]:
        text = chat.tokenizer.decode(list(request.prompt_ids))
        n = int(text.split("Say ")[1].split("<")[0])
        return say(chat, str(2 * n if "Double" in text else n))

    return script


def flat(groups: Sequence[Group]) -> list[Rollout]:
    return [r for g in groups for r in g.rollouts]


def test_two_turns_end_to_end(chat: Chat) -> None:
    with_two = envs(t=EnvSpec(id=f"{ENVS}:TwoTurn"))
    groups = driver(with_two, ScriptedSampler(doubling(chat), per_poll=2), chat).collect(
        tasks(with_two, "t", 4), 1, lambda _: 1.0
    )
    assert [len(g.rollouts) for g in groups] == [3] * 4
    for rollout in flat(groups):
        n = int(rollout.task.reference["n"])
        assert rollout.verdict is not None
        assert rollout.verdict.status is Status.CORRECT
        assert rollout.end is End.STOP
        assert rollout.text == (str(n), str(2 * n))
        assert [s.source for s in rollout.segments] == ["policy", "env", "policy"]
        history = chat.tokenizer.decode([*rollout.prompt_ids, *(i for s in rollout.segments for i in s.ids)])
        assert history == (
            f"<|user|>Say {n}<|end|><|assistant|>{n}<|end|><|user|>Double it<|end|><|assistant|>{2 * n}<|end|>"
        )
        assert rollout.policy_tokens == len(str(n)) + len(str(2 * n)) + 2
    with_two.close()


def test_the_budget_covers_all_turns(chat: Chat) -> None:
    with_two = envs(t=EnvSpec(id=f"{ENVS}:TwoTurn"))
    with_two.specs["t"].budget.tokens = 4
    sampler = ScriptedSampler(lambda request, _: say(chat, "123"))
    (group,) = driver(with_two, sampler, chat).collect(tasks(with_two, "t", 1), 1, lambda _: 1.0)
    for rollout in group.rollouts:
        assert rollout.end is End.BUDGET
        assert rollout.policy_tokens == 4
        assert rollout.verdict is not None
        assert rollout.verdict.status is Status.MALFORMED
    with_two.close()


def test_a_raising_grader_is_its_own_failure(chat: Chat) -> None:
    broken = envs(b=EnvSpec(id=f"{ENVS}:Broken"))
    sampler = ScriptedSampler(lambda request, index: say(chat, ("x", "yes", "no")[index]))
    (group,) = driver(broken, sampler, chat).collect(tasks(broken, "b", 1), 1, lambda _: 1.0)
    verdicts = [r.verdict for r in group.rollouts]
    assert [v.status for v in verdicts if v] == [Status.VERIFIER_ERROR, Status.CORRECT, Status.WRONG]
    assert verdicts[0] is not None
    assert re.search(r"RuntimeError: the grader fell over \(verify, line \d+ of two_turn_env.py\)", verdicts[0].detail)
    broken.close()


def test_setup_runs_once_per_worker_and_close_at_the_end(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    import two_turn_env

    calls: list[str] = []
    monkeypatch.setattr(two_turn_env.Broken, "setup", lambda self: calls.append("setup"))
    monkeypatch.setattr(two_turn_env.Broken, "close", lambda self: calls.append("close"))
    broken = envs(b=EnvSpec(id=f"{ENVS}:Broken"))
    sampler = ScriptedSampler(lambda request, index: say(chat, "no"))
    driver(broken, sampler, chat).collect(tasks(broken, "b", 10), 1, lambda _: 1.0)
    broken.close()
    assert 1 <= calls.count("setup") == calls.count("close") <= 2


def test_rollouts_do_not_depend_on_the_number_of_workers(chat: Chat, tiny_model: Any) -> None:
    found = []
    for workers in (1, 4):
        some = EnvPool({"t": EnvSpec(id=f"{ENVS}:TwoTurn"), "b": EnvSpec(id=f"{ENVS}:Broken")}, workers)
        wanted = tasks(some, "t", 3) + tasks(some, "b", 3)
        groups = driver(some, TorchSampler(tiny_model, 0, 8), chat).collect(wanted, 1, lambda _: 1.0)
        found.append([r.to_json() for r in flat(groups)])
        some.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("spec", [{"snapshots": True, "replay": False}, {}])
def test_paused_rollouts_go_on_after_a_round_trip(chat: Chat, spec: dict[str, bool]) -> None:
    """Paused, saved as JSON, restored in a new driver: nothing lost or said twice."""
    with_two = envs(t=EnvSpec(id=f"{ENVS}:TwoTurn", args=dict(spec)))
    script = doubling(chat)
    first = driver(with_two, ScriptedSampler(script, per_poll=1), chat, group_size=4, pause_share=0.5)
    groups = first.collect(tasks(with_two, "t", 3), 1, lambda _: 1.0)
    assert first.pending
    second = driver(with_two, ScriptedSampler(script), chat, group_size=4)
    assert second.restore(first.state()) == []
    groups += second.collect([], 2, lambda _: 1.0)
    assert sorted((r.task.id, r.k) for r in flat(groups)) == sorted(
        (t.id, k) for t in tasks(with_two, "t", 3) for k in range(4)
    )
    assert all(r.verdict is not None and r.verdict.status is Status.CORRECT for r in flat(groups))
    assert second.pending == []
    with_two.close()


def test_partial_turns_keep_their_segments_and_versions(chat: Chat, tiny_model: Any) -> None:
    """A turn cut by a pause continues with the same draws: its ids equal the uninterrupted rollout's."""
    some = envs(b=EnvSpec(id=f"{ENVS}:Broken"))
    wanted = [replace(task, budget=5 + 10 * n) for n, task in enumerate(tasks(some, "b", 4))]
    whole = driver(some, TorchSampler(tiny_model, 0, 8), chat).collect(wanted, 1, lambda _: 1.0)
    sampler = TorchSampler(tiny_model, 0, 8)
    paused = driver(some, sampler, chat, pause_share=0.3)
    groups = paused.collect(wanted, 1, lambda _: 1.0)
    while paused.pending:
        sampler.version += 1
        groups += paused.collect([], 2, lambda _: 1.0)
    ids = {(r.task.id, r.k): [i for s in r.segments for i in s.ids] for r in flat(groups)}
    assert ids == {(r.task.id, r.k): [i for s in r.segments for i in s.ids] for r in flat(whole)}
    assert any(len({s.version for s in r.segments}) > 1 for r in flat(groups))
    some.close()


def test_what_can_be_neither_replayed_nor_restored_starts_anew(chat: Chat) -> None:
    with_two = envs(t=EnvSpec(id=f"{ENVS}:TwoTurn", args={"replay": False}))
    first = driver(with_two, ScriptedSampler(doubling(chat), per_poll=1), chat, group_size=2, pause_share=0.5)
    first.collect(tasks(with_two, "t", 2), 1, lambda _: 1.0)
    second = driver(with_two, ScriptedSampler(doubling(chat)), chat, group_size=2)
    paused = first.state()
    restart = second.restore(paused)
    assert restart
    assert len(restart) + len(second.pending) == len(paused)
    with_two.close()


def test_the_same_task_twice_is_sampled_anew(chat: Chat, tiny_model: Any) -> None:
    some = envs(b=EnvSpec(id=f"{ENVS}:Broken"))
    (task,) = tasks(some, "b", 1)
    first, second = driver(some, TorchSampler(tiny_model, 0, 8), chat).collect([task, task], 1, lambda _: 1.0)
    assert [r.segments for r in first.rollouts] != [r.segments for r in second.rollouts]
    some.close()


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (("", 0.0, True, False, {"verdict": True}), "a bool, not a k2rl.Verdict"),
        (("", None, True, False, {}), "TypeError"),
        (("", 0.0, True, False, None), "AttributeError"),
    ],
)
def test_what_an_environment_gets_wrong_is_its_failure(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, answer: Any, told: str
) -> None:
    import two_turn_env

    monkeypatch.setattr(two_turn_env.Broken, "step", lambda self, action: answer)
    broken = envs(b=EnvSpec(id=f"{ENVS}:Broken"))
    sampler = ScriptedSampler(lambda request, index: say(chat, "no"))
    (group,) = driver(broken, sampler, chat).collect(tasks(broken, "b", 1), 1, lambda _: 1.0)
    for rollout in group.rollouts:
        assert rollout.end is End.ERROR
        assert rollout.verdict is not None
        assert rollout.verdict.status is Status.VERIFIER_ERROR
        assert told in rollout.verdict.detail
    broken.close()


def test_an_environment_that_overflows_the_context_gets_no_score(chat: Chat) -> None:
    with_two = envs(t=EnvSpec(id=f"{ENVS}:TwoTurn"))
    small = driver(with_two, ScriptedSampler(doubling(chat)), chat, context=40)
    (group,) = small.collect(tasks(with_two, "t", 1), 1, lambda _: 1.0)
    verdicts = [r.verdict for r in group.rollouts]
    assert {v.status for v in verdicts if v} == {Status.INFRA_ERROR}
    assert all(v is not None and "exceed the context 40" in v.detail for v in verdicts)
    with_two.close()


def test_what_setup_made_is_touched_by_one_thread_only(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    import two_turn_env

    owners: list[tuple[int, int]] = []

    def setup(self: Any) -> None:
        self.owner = threading.get_ident()

    def step(self: Any, action: str) -> Any:
        owners.append((self.owner, threading.get_ident()))
        return "", 0.0, True, False, {"verdict": Verdict.of(False)}

    monkeypatch.setattr(two_turn_env.Broken, "setup", setup)
    monkeypatch.setattr(two_turn_env.Broken, "step", step)
    some = EnvPool({"b": EnvSpec(id=f"{ENVS}:Broken")}, workers=3)
    sampler = ScriptedSampler(lambda request, index: say(chat, "no"), per_poll=2)
    driver(some, sampler, chat).collect(tasks(some, "b", 9), 1, lambda _: 1.0)
    some.close()
    assert len({owner for owner, _ in owners}) == 3
    assert all(owner == thread for owner, thread in owners)
