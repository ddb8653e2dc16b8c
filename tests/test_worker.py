"""Several workers asked at once: all answer before a failure is raised, and it is the one that explains the rest."""

from __future__ import annotations

from typing import Any

import pytest

from k2rl.cluster.worker import WorkerGoneError, ask_all
from k2rl.errors import RunError


class Told:
    """A worker that answers, or fails, as it was told to."""

    def __init__(self, answer: Any) -> None:
        self.answer, self.received = answer, 0

    def send(self, method: str, *arguments: Any) -> None:
        """There is nobody to ask."""

    def receive(self) -> Any:
        self.received += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_who_is_gone_is_named_and_not_who_waited_for_it() -> None:
    workers: Any = [Told(RunError("rank 0: connection closed")), Told(WorkerGoneError("rank 1 has ended")), Told(3)]
    with pytest.raises(WorkerGoneError, match="rank 1 has ended"):
        ask_all(workers, "step")
    assert [worker.received for worker in workers] == [1, 1, 1]
    with pytest.raises(RunError, match="rank 0"):
        ask_all([workers[2], workers[0]], "step")
    assert ask_all([workers[2]], "step") == [3]
