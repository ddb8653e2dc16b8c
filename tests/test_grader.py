"""A grader that fails is replaced by a new one, and the failure is put down to whoever causes it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import pytest
from k2rl_rewards.grader import GraderError, GraderProcess, attributed

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
