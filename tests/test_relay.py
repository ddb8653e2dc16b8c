"""Weights to other machines: once to each, whatever is lost on the way is said, and made again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import torch

from k2rl.cluster.child import ChildProcess
from k2rl.cluster.worker import Job, WorkerGoneError, ask
from k2rl.engines.relay import Relays
from k2rl.engines.shared_memory import Bucket, Inbox, Outbox

pytestmark = pytest.mark.cluster


class Reader:
    """What stands for an engine: it tells the sums of what it finds."""

    def __init__(self, argument: None) -> None:
        self.inbox = Inbox()

    def read(self, bucket: Bucket) -> dict[str, float]:
        return {name: float(tensor.double().sum()) for name, tensor in self.inbox.read(bucket)}


class Elsewhere(ChildProcess):
    """A worker that says it is on another machine, and counts who was started beside it."""

    def __init__(self, machine: str) -> None:
        super().__init__(Job(f"reader on {machine or 'this machine'}", "test_relay:Reader", None))
        self.machine = machine
        self.beside: list[ChildProcess] = []

    def neighbour(self, job: Job) -> ChildProcess:
        self.beside.append(super().neighbour(job))
        return self.beside[-1]


@pytest.fixture(scope="module")
def engines() -> Iterator[list[Elsewhere]]:
    made = [Elsewhere(machine) for machine in ("", "two", "two", "three")]
    yield made
    for engine in made:
        engine.close()


def test_each_machine_is_sent_to_once_and_all_read_the_same(engines: list[Elsewhere]) -> None:
    sent = {f"layer.{n}": torch.randn(40, n + 1) for n in range(6)} | {"none": torch.empty(0, 4)}
    sums, relays = {name: float(tensor.double().sum()) for name, tensor in sent.items()}, Relays(64)
    found: list[dict[str, float]] = [{} for _ in engines]
    with Outbox(512) as outbox:
        for bucket in outbox.fill(sent.items()):
            there = relays.at(engines, bucket)
            assert there[0] is bucket
            assert there[1] == there[2]
            assert len({one.block for one in there}) == 3
            for engine, one, own in zip(engines, there, found, strict=True):
                own |= ask(engine, "read", one)
    assert found == [sums] * 4
    started = [job.job.name for engine in engines for job in engine.beside]
    assert started == ["relay beside reader on two", "relay beside reader on three"]
    relays.close()


def test_engines_of_this_machine_need_none(engines: list[Elsewhere]) -> None:
    with Outbox(512) as outbox:
        (bucket,) = outbox.fill([("a", torch.ones(3))])
        assert Relays(64).at(engines[:1], bucket) == [bucket]
    assert engines[0].beside == []


def test_a_relay_that_is_lost_is_named_and_the_next_call_starts_another(engines: list[Elsewhere]) -> None:
    relays = Relays(64)
    with Outbox(512) as outbox:
        (bucket,) = outbox.fill([("a", torch.ones(3))])
        relays.at(engines, bucket)
        os.kill(engines[1].beside[-1].pid, signal.SIGKILL)
        with pytest.raises(WorkerGoneError, match="relay beside reader on two has ended"):
            relays.at(engines, bucket)
        relays.close()
        assert [ask(e, "read", one) for e, one in zip(engines, relays.at(engines, bucket), strict=True)] == [
            {"a": 3.0}
        ] * 4
    relays.close()


def test_a_bucket_stays_there_until_the_next_but_one_is_sent(engines: list[Elsewhere]) -> None:
    relays = Relays(256)
    with Outbox(256) as outbox:
        filling = outbox.fill((str(n), torch.full((64,), float(n))) for n in range(3))
        first, second = (relays.at(engines[1:], next(filling))[0] for _ in range(2))
        assert [ask(engines[1], "read", bucket) for bucket in (first, second)] == [{"0": 0.0}, {"1": 64.0}]
        relays.at(engines[1:], next(filling))
        assert [ask(engines[1], "read", bucket) for bucket in (first, second)] == [{"0": 128.0}, {"1": 64.0}]
    relays.close()
