"""Weights through a block of shared memory: all of them, as they were, whatever fits at a time."""

import os
import pickle
import subprocess
import sys

import pytest
import torch

from k2rl.engines.shared_memory import Bucket, Inbox, Outbox

pytestmark = pytest.mark.cluster


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    made = {f"layer.{n}": torch.randn(3, 7 + n, generator=draw) for n in range(5)}
    return made | {
        "half": torch.randn(9, generator=draw).bfloat16(),
        "none": torch.empty(0, 4),
        "one": torch.tensor(3.0),
    }


@pytest.mark.parametrize("size", [1, 128, 1 << 20])
def test_every_tensor_arrives_as_it_was(size: int) -> None:
    sent, inbox, buckets = tensors(), Inbox(), 0
    with Outbox(size) as outbox:
        found = dict[str, torch.Tensor]()
        for bucket in outbox.fill(sent.items()):
            buckets += 1
            found |= {name: tensor.clone() for name, tensor in inbox.read(bucket)}
        inbox.close()
    assert found.keys() == sent.keys()
    for name, tensor in sent.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert (buckets == 1) == (size == 1 << 20)


def test_a_bucket_stays_until_the_next_but_one_is_asked_for() -> None:
    inbox = Inbox()
    with Outbox(128) as outbox:
        filling = outbox.fill((str(n), torch.full((32,), float(n))) for n in range(3))
        first, second = next(filling), next(filling)
        assert [t.tolist() for bucket in (first, second) for _, t in inbox.read(bucket)] == [[0.0] * 32, [1.0] * 32]
        next(filling)
        assert [t.tolist() for bucket in (first, second) for _, t in inbox.read(bucket)] == [[2.0] * 32, [1.0] * 32]
        inbox.close()


def test_a_bucket_can_be_laid_out_first_and_filled_from_both_ends() -> None:
    sent, inbox = tensors(), Inbox()
    with Outbox(128) as outbox:
        bucket = outbox.lay((name, tensor.dtype, tensor.shape) for name, tensor in sent.items())
        ends = (inbox.read(bucket), outbox.views(bucket))
        for n, ((name, there), (_, here)) in enumerate(zip(*ends, strict=True)):
            (there if n % 2 else here).copy_(sent[name])
        del there, here
        found = {name: tensor.clone() for name, tensor in inbox.read(bucket)}
        inbox.close()
    assert found.keys() == sent.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in sent.items())


def test_another_process_reads_it_and_nothing_stays_behind() -> None:
    read = """
import pickle, sys
from k2rl.engines.shared_memory import Inbox
inbox = Inbox()
print({name: round(float(tensor.float().sum()), 4) for name, tensor in inbox.read(pickle.load(sys.stdin.buffer))})
inbox.close()
"""

    sent = tensors()
    before = set(os.listdir("/dev/shm"))
    with Outbox(1 << 20) as outbox:
        (bucket,) = outbox.fill(sent.items())
        done = subprocess.run([sys.executable, "-c", read], input=pickle.dumps(bucket), capture_output=True, check=True)
        again = subprocess.run(
            [sys.executable, "-c", read], input=pickle.dumps(bucket), capture_output=True, check=True
        )
    assert eval(done.stdout) == {name: round(float(tensor.float().sum()), 4) for name, tensor in sent.items()}
    assert again.stdout == done.stdout, "the first reader's end took nothing away"
    assert done.stderr == b""
    assert set(os.listdir("/dev/shm")) <= before


def test_a_sender_that_is_killed_takes_it_with_it() -> None:
    send = """
import pickle, sys, time, torch
from k2rl.engines.shared_memory import Outbox
outbox = Outbox(1 << 20)
(bucket,) = outbox.fill([("a", torch.arange(5.0))])
sys.stdout.buffer.write(pickle.dumps(bucket))
sys.stdout.flush()
time.sleep(100)
"""
    before = set(os.listdir("/dev/shm"))
    with subprocess.Popen([sys.executable, "-c", send], stdout=subprocess.PIPE) as sender:
        assert sender.stdout is not None
        bucket = pickle.load(sender.stdout)
        inbox = Inbox()
        ((_, mapped),) = inbox.read(bucket)
        sender.kill()
    assert mapped.tolist() == [0, 1, 2, 3, 4], "who has it mapped still does"
    with pytest.raises(FileNotFoundError):
        list(Inbox().read(bucket))
    assert set(os.listdir("/dev/shm")) <= before


def test_a_block_that_took_the_place_of_another_is_not_taken_for_it() -> None:
    with Outbox(64) as outbox:
        (old,) = outbox.fill([("a", torch.zeros(4))])
    with Outbox(64) as outbox:
        list(outbox.fill([("a", torch.ones(4))]))
        with pytest.raises(FileNotFoundError):
            list(Inbox().read(old))
    # Another process's file of that number, and none of ours.
    with pytest.raises(FileNotFoundError):
        list(Inbox().read(Bucket(f"{os.getpid()}/fd/0 1", ())))
