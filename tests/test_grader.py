"""A grader that fails is replaced by a new one, and the failure is put down to whoever causes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from k2rl_rewards.grader import GraderError, GraderPool, GraderProcess, attributed

from k2rl.types import Status


def fake_grader() -> Callable[[str], object]:
    """Runs in the child: does what it is told."""

    def answer(order: str) -> object:
        if order == "sleep":
            time.sleep(60)
        if order == "die":
            sys.exit(3)
        if order == "print":
            print("noise", flush=True)
        if order == "pid":
            return os.getpid()
        return 1 // 0 if order == "raise" else order

    return answer


def test_the_grader_process_restarts_after_a_failure() -> None:
    grader = GraderProcess("test_grader:fake_grader")
    assert grader.call("print", deadline_s=5.0) == "print"
    for order, cause in [
        ("sleep", Status.TIMEOUT),
        ("die", Status.VERIFIER_ERROR),
        ("raise", Status.VERIFIER_ERROR),
    ]:
        with pytest.raises(GraderError) as caught:
            grader.call(order, deadline_s=0.3)
        assert caught.value.status is cause
        assert grader.call("fine", deadline_s=5.0) == "fine"
    grader.close()


def test_threads_do_not_wait_for_one_that_hangs() -> None:
    pool = GraderPool("test_grader:fake_grader", size=1, patience_s=0.05)
    assert pool.call("fine", deadline_s=5.0) == "fine"
    with ThreadPoolExecutor(3) as threads:
        hanging = [threads.submit(pool.call, "sleep", deadline_s=6.0) for _ in range(2)]
        time.sleep(0.2)
        assert pool.call("fine", deadline_s=5.0) == "fine"
        assert not any(future.done() for future in hanging)
        assert all(isinstance(future.exception(), GraderError) for future in hanging)
    assert len(pool._idle) == 1  # the ones for hard times are gone
    pool.close()


def test_a_full_pool_makes_threads_wait() -> None:
    pool = GraderPool("test_grader:fake_grader", size=1, most=1, patience_s=0.01)
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(lambda n: pool.call(str(n), deadline_s=5.0), range(20))) == [str(n) for n in range(20)]
    pool.close()


PARENT = """
import os, sys, time
from k2rl_rewards.grader import GraderPool
pool = GraderPool("test_grader:fake_grader", size=1)
pool.call("fine", deadline_s=5.0)
sibling = os.fork()  # keeps the parent's end of the pipe open
if sibling == 0:
    print(pool.call("forked", deadline_s=20.0), flush=True)  # by a grader of its own
    time.sleep(60)
print(sibling, pool.call("pid", deadline_s=5.0), flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_graders_end_with_a_killed_parent_and_are_not_shared_by_a_fork() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env=env)
    assert parent.stdout is not None
    lines = sorted([parent.stdout.readline().split() for _ in range(2)], key=len)
    assert lines[0] == ["forked"]
    sibling, grader = (int(pid) for pid in lines[1])
    parent.kill()
    parent.wait()
    try:
        deadline = time.monotonic() + 10.0
        while alive(grader) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not alive(grader)
    finally:
        os.kill(sibling, signal.SIGKILL)
        parent.stdout.close()


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    if state.parent.parent.joinpath("self").exists():
        return state.is_file() and state.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def failing(cause: Status, times: int) -> Callable[[], bool]:
    left = [times]

    def attempt() -> bool:
        left[0] -= 1
        if left[0] >= 0:
            raise GraderError(cause, "broken")
        return True

    return attempt


@pytest.mark.parametrize(
    ("attempt_fails", "control", "expected"),
    [
        (0, lambda: True, Status.CORRECT),
        (1, lambda: True, Status.CORRECT),  # it happened once: not the answer's doing
        (2, lambda: True, Status.MALFORMED),
        (2, lambda: False, Status.VERIFIER_ERROR),
        (2, failing(Status.TIMEOUT, 1), Status.TIMEOUT),
        (2, failing(Status.VERIFIER_ERROR, 1), Status.VERIFIER_ERROR),
    ],
)
def test_failures_are_attributed_by_cause(attempt_fails: int, control: Callable[[], bool], expected: Status) -> None:
    assert attributed(failing(Status.TIMEOUT, attempt_fails), control, "wrong").status is expected
