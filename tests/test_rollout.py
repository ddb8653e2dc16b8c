"""Rolling out: groups complete, multi-turn end to end, failures contained, partial rollouts go on identically."""

from __future__ import annotations

import copy
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from k2rl import envpool
from k2rl.budget import BudgetConfig
from k2rl.chat import Chat
from k2rl.curriculum import pool
from k2rl.envpool import EnvPool
from k2rl.errors import RunError
from k2rl.protocols import Completion, Request
from k2rl.recipe import EnvSpec, RunConfig
from k2rl.rollout import RolloutDriver
from k2rl.samplers.scripted import ScriptedSampler
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.scoring import correct, reward
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


def test_what_repeats_itself_ends_as_the_budget_would_end_it(chat: Chat, tiny_model: Any) -> None:
    looping = EnvSpec(id=f"{ENVS}:TwoTurn", budget=BudgetConfig(tokens=100, max_repeats=2))
    with_two = envs(t=looping)
    sampler = TorchSampler(tiny_model, chat.pad_id, 8)
    groups = driver(with_two, sampler, chat).collect(tasks(with_two, "t", 6), 1, lambda _: 0.0)
    ended = [r for g in groups for r in g.rollouts if r.end is End.REPEAT]
    assert ended
    for rollout in ended:
        assert rollout.policy_tokens < 100
        assert rollout.cut
        assert rollout.text, "what it said is shown"
        assert reward(rollout, looping) == -0.5
        assert not correct(rollout, looping)
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


class Ahead(ScriptedSampler):
    """Works on its own, as an engine in another process: what it is asked to stop has finished by then."""

    def abort(self, ids: Iterable[str] | None = None) -> list[Completion]:
        return [c for _ in range(len(self._queue)) for c in self.poll()]


@pytest.mark.parametrize("budget", [None, 3])
def test_samples_that_finish_before_the_pause_is_heard_of_are_finished(chat: Chat, budget: int | None) -> None:
    spec = EnvSpec(id=f"{ENVS}:TwoTurn", budget=BudgetConfig(tokens=budget))
    found = []
    for kind, share in ((ScriptedSampler, 1.0), (Ahead, 0.3)):
        some = envs(t=spec)
        rolling = driver(some, kind(doubling(chat), per_poll=1), chat, pause_share=share)
        groups = rolling.collect(tasks(some, "t", 2), 1, lambda _: 1.0)
        assert rolling.pending == []
        found.append([(r.end, r.text, r.verdict) for r in flat(groups)])
        some.close()
    assert found[0] == found[1]


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


@pytest.fixture
def hanging() -> Iterator[None]:
    """Calls that hang, until the test is over."""
    import two_turn_env

    two_turn_env.Hanging.release.clear()
    yield
    two_turn_env.Hanging.release.set()


def hang_at(chat: Chat, task: str, turn: str, index: int) -> Callable[[Request, int], Sequence[int]]:
    """Plays TwoTurn right, but for one rollout of one task."""
    play = doubling(chat)

    def script(request: Request, at: int) -> Sequence[int]:
        text = chat.tokenizer.decode(list(request.prompt_ids))
        last = text.rpartition("<|user|>")[2]
        return say(chat, "x") if f"Say {task}<" in text and last.startswith(turn) and at == index else play(request, at)

    return script


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("replay", [True, False])
def test_a_stuck_environment_costs_its_own_rollout_only(
    chat: Chat, hanging: None, capsys: pytest.CaptureFixture[str], workers: int, replay: bool
) -> None:
    """The others of its worker go on with a new thread, replayed; what can't be replayed has no verdict."""
    run = RunConfig(patience_s=0.3, stuck_s=1.0)
    some = EnvPool({"h": EnvSpec(id=f"{ENVS}:Hanging", args={"replay": replay})}, workers, run)
    sampler = ScriptedSampler(hang_at(chat, "2", "Say", 1), per_poll=2)
    groups = driver(some, sampler, chat).collect(tasks(some, "h", 3), 1, lambda _: 1.0)
    verdicts = {(r.task.prompt, r.k): r.verdict for r in flat(groups)}
    stuck = verdicts.pop(("Say 2", 1))
    assert stuck is not None
    assert stuck.status is Status.TIMEOUT
    assert "step did not return within 1 s: wait (" in stuck.detail
    assert "two_turn_env.py:" in stuck.detail
    statuses = {v.status for v in verdicts.values() if v}
    assert statuses == ({Status.CORRECT} if replay else {Status.CORRECT, Status.INFRA_ERROR})
    told = capsys.readouterr().err
    waited = r"waiting for the step of env h, task \w{16}, rollout 1 for 0 s: wait \(.*, step \(.*two_turn_env.py:\d+\)"
    assert re.search(waited, told)
    assert "gave up on the step of env h" in told
    assert some.watchdog.take_slow() == {"h": 1}
    some.close()


def test_a_stuck_second_turn_ends_as_one_too(chat: Chat, hanging: None) -> None:
    some = EnvPool({"h": EnvSpec(id=f"{ENVS}:Hanging")}, 1, RunConfig(patience_s=0.3, stuck_s=1.0))
    groups = driver(some, ScriptedSampler(hang_at(chat, "0", "Double", 0)), chat, group_size=1).collect(
        tasks(some, "h", 3), 1, lambda _: 1.0
    )
    statuses = [r.verdict.status for r in flat(groups) if r.verdict]
    assert statuses == [Status.TIMEOUT, Status.CORRECT, Status.CORRECT]
    some.close()


def test_paused_rollouts_survive_the_thread_they_were_on(chat: Chat, hanging: None) -> None:
    """Between two iterations an evaluation gives up on the worker of rollouts that are under way."""
    some = EnvPool({"h": EnvSpec(id=f"{ENVS}:Hanging")}, 1, RunConfig(patience_s=0.3, stuck_s=1.0))
    paused = driver(some, ScriptedSampler(doubling(chat), per_poll=1), chat, pause_share=0.4)
    groups = paused.collect(tasks(some, "h", 2), 1, lambda _: 1.0)
    assert paused.pending
    other = driver(some, ScriptedSampler(lambda request, index: say(chat, "x")), chat, group_size=1)
    other.collect(tasks(some, "h", 1), 1, lambda _: 1.0)
    assert some.generations == [1]
    while paused.pending:
        groups += paused.collect([], 2, lambda _: 1.0)
    assert {r.verdict.status for r in flat(groups) if r.verdict} == {Status.CORRECT}
    some.close()


def test_an_environment_that_always_hangs_stops_the_run(
    chat: Chat, hanging: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envpool, "_CLOSE_S", 0.1)
    some = EnvPool({"h": EnvSpec(id=f"{ENVS}:Hanging")}, 2, RunConfig(patience_s=0.2, stuck_s=0.4))
    with pytest.raises(RunError, match=r"env h: 3 of its last 3 calls of step did not return within run.stuck_s=0.4 s"):
        driver(some, ScriptedSampler(lambda request, index: say(chat, "x")), chat).collect(
            tasks(some, "h", 3), 1, lambda _: 1.0
        )
    some.close()


def test_a_sampler_that_says_nothing_is_named(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    class Slow(ScriptedSampler):
        until = 0.0

        def poll(self) -> list[Completion]:
            self.until = self.until or time.monotonic() + 1.0
            time.sleep(0.01)
            return super().poll() if time.monotonic() > self.until else []

    some = EnvPool({"b": EnvSpec(id=f"{ENVS}:Broken")}, 1, RunConfig(patience_s=0.3))
    sampler = Slow(lambda request, index: say(chat, "yes"))
    driver(some, sampler, chat).collect(tasks(some, "b", 2), 1, lambda _: 1.0)
    assert "waiting for the sampler to finish one of 6 samples for 0 s: " in capsys.readouterr().err
    assert some.watchdog.take_slow() == {}
    some.close()


def test_a_grader_that_exits_is_its_own_failure(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    import two_turn_env

    monkeypatch.setattr(two_turn_env.Broken, "verify", lambda self, task, response: sys.exit(0))
    broken = envs(b=EnvSpec(id=f"{ENVS}:Broken"))
    sampler = ScriptedSampler(lambda request, index: say(chat, "no"))
    (group,) = driver(broken, sampler, chat).collect(tasks(broken, "b", 1), 1, lambda _: 1.0)
    assert {r.verdict.status for r in group.rollouts if r.verdict} == {Status.VERIFIER_ERROR}
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
