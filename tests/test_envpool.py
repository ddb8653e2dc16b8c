"""Worker threads: jobs in order, stuck ones left behind, late results ignored."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from k2rl import envpool
from k2rl.envpool import EnvCall, EnvPool, StuckError
from k2rl.errors import RunError
from k2rl.recipe import EnvSpec, RunConfig

STEP = EnvCall("step", "b", "0123", 1)


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What stuck calls wait for, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


def pool(workers: int = 1, **run: float) -> EnvPool:
    return EnvPool({"b": EnvSpec(id="two_turn_env:Broken")}, workers, RunConfig(**{"patience_s": 0.2, **run}))  # type: ignore[arg-type]


def test_a_stuck_job_makes_way_for_those_behind_it(release: threading.Event) -> None:
    some = pool(stuck_s=0.5)
    (stuck,) = some.submit(0, (STEP, release.wait))
    ident = some.submit(0, *[(STEP, threading.get_ident)] * 3)
    started = time.monotonic()
    some.wait(stuck, *ident)
    assert 0.5 <= time.monotonic() - started < 2
    with pytest.raises(StuckError, match=r"step did not return within 0.5 s: wait \(.*threading.py"):
        stuck.result()
    assert len({f.result() for f in ident}) == 1
    release.set()
    time.sleep(0.1)
    assert isinstance(stuck.exception(), StuckError), "a result that comes late does not count"
    assert some.generations == [1]
    some.close()


def test_a_loop_without_end_is_ended() -> None:
    def forever() -> None:
        while True:
            pass

    some = pool(stuck_s=0.3)
    before = threading.active_count()
    (stuck,) = some.submit(0, (STEP, forever))
    some.wait(stuck)
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before
    some.close()


def test_setup_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import two_turn_env

    monkeypatch.setattr(two_turn_env.Broken, "setup", lambda self: time.sleep(0.6))
    some = pool(workers=2, stuck_s=0.3)
    (spawned,) = some.submit(1, (STEP, lambda: some.spawn("b")))
    some.wait(spawned)
    assert isinstance(spawned.result(), two_turn_env.Broken)
    some.close()


def test_a_share_of_stuck_calls_stops_the_run(release: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envpool, "_CLOSE_S", 0.1)
    some = pool(stuck_s=0.2, max_failure_rate=0.1)
    for _ in range(10):
        some.wait(*some.submit(0, (STEP, int)))
    for _ in range(5):  # one task's own affair
        some.wait(*some.submit(0, (EnvCall("step", "b", "4567"), release.wait)))
        some.wait(*some.submit(0, (STEP, int)))
    with pytest.raises(RunError, match=r"^env b: 6 of its last 20 calls of step did not .*task 0123, rollout 1, is at"):
        some.wait(*some.submit(0, (STEP, release.wait)))
    some.close()


def test_closing_does_not_wait_for_what_is_stuck(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import two_turn_env

    def close(self: object) -> None:
        raise OSError("the service is gone")

    monkeypatch.setattr(envpool, "_CLOSE_S", 0.3)
    monkeypatch.setattr(two_turn_env.Broken, "close", close)
    some = pool(workers=2)
    some.submit(1, (STEP, release.wait))
    started = time.monotonic()
    some.close()
    assert time.monotonic() - started < 2
    assert capsys.readouterr().err == "closing an environment failed: OSError: the service is gone\n"
