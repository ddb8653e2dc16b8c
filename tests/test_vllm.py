"""vLLM as a sampler: real engines in real processes. Skipped where vLLM is not installed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_sync import Weights, nano, updates

from k2rl import assets
from k2rl.cluster.child import ChildProcess
from k2rl.cluster.worker import Job
from k2rl.engines.shared_memory import BUCKET
from k2rl.errors import RunError
from k2rl.models import Policy
from k2rl.protocols import Completion, Request
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.sync import Sync

pytest.importorskip("vllm", reason="vLLM is not installed: make test-cluster")

from k2rl.engines.vllm_engine import EngineConfig
from k2rl.samplers.vllm_sampler import Publisher, VllmSampler

pytestmark = pytest.mark.cluster

CONFIG = EngineConfig(str(assets.NANO), "float32", 1024, 32)
HEAD = r"tensor lm_head\.weight \(tied to model\.embed_tokens\.weight\) differs by 0\.\d+ there$"
PROMPT = tuple(range(30, 60))


ENGINE = "k2rl.engines.vllm_engine:Engine"


class One(VllmSampler):
    """A sampler that closes what it publishes with."""

    def close(self) -> None:
        super().close()
        self._publisher.close()


def engine(policy: Policy, target: str = ENGINE, bucket: int = BUCKET, **config: Any) -> VllmSampler:
    job = Job("vLLM engine 0", target, EngineConfig(**{**vars(CONFIG), **config}))
    return One(ChildProcess(job), Publisher([name for name, _ in policy.model.named_parameters()], bucket))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return nano()


@pytest.fixture(scope="module")
def sampler(policy: Policy) -> Iterator[VllmSampler]:
    made = engine(policy)
    yield made
    made.close()


@pytest.fixture
def same(policy: Policy, sampler: VllmSampler) -> VllmSampler:
    """One that has the policy's weights, whatever was done to either before."""
    sampler.abort()
    sampler.publish(policy.model.named_parameters(), sampler.version + 1)
    return sampler


def finished(sampler: Any, *requests: Request) -> dict[tuple[str, int], Completion]:
    sampler.submit(requests)
    done: list[Completion] = []
    while len(done) < sum(r.n for r in requests):
        done += sampler.poll()
    return {(c.request_id, c.index): c for c in done}


def request(name: str, *keys: int, tokens: int = 40, temperature: float = 1.0, **more: Any) -> Request:
    return Request(name, PROMPT, keys, tokens, temperature, more.pop("stop_ids", frozenset()), **more)


def known(policy: Policy, completion: Completion, temperature: float) -> Any:
    """The policy's own log-probs of a completion."""
    ids = torch.tensor([[*PROMPT, *completion.ids]])
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits[0, len(PROMPT) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1).gather(1, torch.tensor(completion.ids)[:, None])[:, 0].numpy()


def test_log_probs_are_the_policys_at_the_temperature(policy: Policy, same: VllmSampler) -> None:
    made = finished(
        same, request("hot", 1, 2), request("cold", 3, temperature=0.6), request("greedy", 4, temperature=0)
    )
    for (name, _), completion in made.items():
        heat = {"hot": 1.0, "cold": 0.6, "greedy": 1.0}[name]
        assert len(completion.ids) == 40
        assert completion.finish == "length"
        assert completion.version == same.version
        assert np.abs(known(policy, completion, heat) - completion.logprobs).max() < 1e-3


def test_greedy_is_the_torch_samplers(policy: Policy, same: VllmSampler) -> None:
    torch_sampler = TorchSampler(policy.model, policy.chat.pad_id)
    asked = request("g", 1, temperature=0.0, stop_ids=policy.chat.stop_ids)
    (a,), (b,) = (finished(one, asked).values() for one in (same, torch_sampler))
    assert a.ids == b.ids
    assert a.finish == b.finish


def test_a_sample_is_drawn_by_its_key_alone(same: VllmSampler) -> None:
    alone = finished(same, request("a", 7))["a", 0]
    among = finished(same, request("x", 1, 2, 3), request("a", 7), request("y", 9))
    assert among["a", 0].ids == alone.ids
    assert len({c.ids for c in among.values()}) == 5
    later = finished(same, request("a", 7, first_position=5))["a", 0]
    assert later.ids != alone.ids, "what goes on does not repeat the draws of its beginning"


def test_more_prompts_than_a_step_takes_are_sampled(policy: Policy, same: VllmSampler) -> None:
    draw = np.random.default_rng(1)
    prompts = [tuple(draw.integers(20, 400, size=300).tolist()) for _ in range(30)]
    made = finished(same, *(Request(str(n), ids, (n,), 3, 1.0, frozenset()) for n, ids in enumerate(prompts)))
    assert len(made) == 30


def test_a_stop_id_ends_a_sample_and_is_part_of_it(policy: Policy, same: VllmSampler) -> None:
    first = finished(same, request("a", 1, tokens=8))["a", 0].ids
    cut = finished(same, request("a", 1, tokens=8, stop_ids=frozenset({first[3]})))["a", 0]
    assert cut.ids == first[: first.index(first[3]) + 1]
    assert cut.finish == "stop"


def test_samples_have_the_budgets_of_their_requests(same: VllmSampler) -> None:
    made = finished(same, request("short", 1, tokens=3), request("long", 2, tokens=17))
    assert [len(c.ids) for c in (made["short", 0], made["long", 0])] == [3, 17]


def test_who_goes_round_in_circles_is_ended(policy: Policy, same: VllmSampler) -> None:
    asked = request("r", 1, tokens=400, temperature=0.0)
    assert finished(same, asked)["r", 0].finish == "length"
    ended = finished(same, request("r", 1, tokens=400, temperature=0.0, max_repeats=4))["r", 0]
    expected = finished(
        TorchSampler(policy.model, policy.chat.pad_id), request("r", 1, tokens=400, temperature=0.0, max_repeats=4)
    )["r", 0]
    assert (ended.finish, ended.ids) == (expected.finish, expected.ids)


def test_partials_go_on_where_they_stopped(policy: Policy, same: VllmSampler) -> None:
    same.submit([request("a", 1, tokens=900), request("b", 2, tokens=900)])
    while not (partial := {c.request_id: c for c in same.abort(["a"])})["a"].ids:
        same.submit([request("a", 1, tokens=900)])
        time.sleep(0.2)
    assert partial["a"].finish == "abort"
    assert np.abs(known(policy, partial["a"], 1.0) - partial["a"].logprobs).max() < 1e-3
    with pytest.raises(ValueError, match="under way"):
        same.publish([], 9)
    with pytest.raises(ValueError, match="under way"):
        same.score_labels([PROMPT], [1, 2])
    assert [c.request_id for c in same.abort()] == ["b"]
    assert same.poll() == []


def test_labels_are_scored_as_the_torch_sampler_does(policy: Policy, same: VllmSampler) -> None:
    draw = np.random.default_rng(0)
    prompts = [draw.integers(20, 400, size=int(n)).tolist() for n in (1, 30, 200, 200, 300)]
    prompts += [[*prompts[-1][:250], 5, 6]]
    expected = TorchSampler(policy.model, policy.chat.pad_id).score_labels(prompts, [21, 22, 23])
    assert np.abs(same.score_labels(prompts, [21, 22, 23]) - expected).max() < 1e-4
    assert same.score_labels([], [21, 22]).shape == (0, 2)


def test_weights_arrive_each_time_also_in_small_buckets(policy: Policy, same: VllmSampler) -> None:
    trainer, sync = Weights(policy.model), None
    same._publisher = Publisher([name for name, _ in policy.model.named_parameters()], 200_000)
    sync = Sync(policy, trainer, same, seed=1)
    for _ in range(3):
        trainer.update()
        assert sync(same.version + 1)["sync/gap"] < 1e-3
    same._publisher.close()


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.norm.weight"]
    + [f"model.layers.2.{part}.weight" for part in ("self_attn.k_proj", "mlp.up_proj", "input_layernorm")],
)
def test_what_the_engine_does_not_hold_is_told(name: str, policy: Policy, same: VllmSampler) -> None:
    own = {n: t.detach().clone() for n, t in policy.model.named_parameters()}
    assert same.differing(own.items()) == {}
    own[name][-1] += 0.125
    assert same.differing(own.items()) == {name: pytest.approx(0.125, rel=1e-4)}


def test_a_tensor_that_is_missing_or_foreign_is_named(policy: Policy, same: VllmSampler) -> None:
    own = dict(policy.model.named_parameters())
    with pytest.raises(RunError, match=r"tensor model\.norm\.weight was not sent"):
        same.publish(((n, t) for n, t in own.items() if n != "model.norm.weight"), 50)


def test_it_sleeps_and_wakes_with_published_weights(policy: Policy) -> None:
    one = engine(policy)
    try:
        one.sleep()
        one.wake(["weights"])
        one.publish(policy.model.named_parameters(), 1)
        one.wake(["cache"])
        Sync(policy, Weights(policy.model), one, seed=0)(2)
    finally:
        one.close()


@pytest.mark.parametrize(
    ("bug", "told"),
    [
        ("one tensor is dropped", r"tensor model\.layers\.1\.mlp\.down_proj\.weight differs by 0\.\d+ there$"),
        ("stale cache", "after a known prompt .* all weights are equal there"),
        ("wrong temperature", "sampled at temperature 0.5 .* all weights are equal there"),
        ("tied head is not refreshed", HEAD),
        ("tied head is packed once", HEAD),
        ("version is not taken over", "samples are stamped 0"),
    ],
)
def test_planted_bugs_are_found(bug: str, told: str, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", bug)
    planted, trainer = engine(policy, "planted_engine:Planted"), Weights(policy.model)
    sync = Sync(policy, trainer, planted, seed=0)
    try:
        with pytest.raises(RunError, match=told):
            updates(sync, trainer)
    finally:
        planted.close()


def test_an_engine_that_is_killed_is_named_and_leaves_nothing(policy: Policy) -> None:
    before = set(os.listdir("/dev/shm"))
    one = engine(policy)
    one.publish(policy.model.named_parameters(), 1)
    one.submit([request("a", 1, tokens=900)])
    os.kill(one.engine.pid, signal.SIGKILL)
    with pytest.raises(RunError, match=r"vLLM engine 0 has ended \(exit code -9\)"):
        one.abort()
    one.close()
    assert set(os.listdir("/dev/shm")) <= before


def test_an_engine_that_can_not_start_says_why(policy: Policy) -> None:
    with pytest.raises(RunError, match="max_model_len"):
        engine(policy, context=1_000_000)
