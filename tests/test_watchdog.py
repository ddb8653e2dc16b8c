"""The watchdog: what takes long is named, with its place; what holds the interpreter's lock is not silent either."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from k2rl.watchdog import Watchdog


def test_a_long_call_is_named_whenever_its_time_has_doubled(capsys: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog(0.1, 60)
    with watchdog.watching("the step of env e", "e"), watchdog.watching(lambda: "", "nothing to say"):
        time.sleep(1.0)
    with watchdog.watching("what is quick", "e"):
        pass
    watchdog.close()
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4
    for line in lines:
        assert line.startswith("waiting for the step of env e for ")
        assert f"test_a_long_call_is_named_whenever_its_time_has_doubled ({__file__}:" in line
    assert watchdog.take_slow() == {"e": 1}
    assert watchdog.take_slow() == {}


def test_what_moves_is_not_late(capsys: pytest.CaptureFixture[str]) -> None:
    watchdog = Watchdog(0.4, 60)
    with watchdog.watching("the sampler") as call:
        for _ in range(8):
            time.sleep(0.1)
            call.touch()
    watchdog.close()
    assert capsys.readouterr().err == ""


def test_it_ends_when_closed() -> None:
    before = threading.active_count()
    watchdog = Watchdog(0.1, 60)
    watchdog.close()
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_code_that_holds_the_interpreters_lock_shows_its_stack() -> None:
    code = (
        "import re; from k2rl.watchdog import Watchdog\n"
        "def verify(): re.match('(a+)+$', 'a' * 60 + 'b')\n"
        "watchdog = Watchdog(0.2, 0.5)\n"
        "import time; time.sleep(0.3); verify()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "in verify" in line:
            break
    process.kill()
    process.wait()
    process.stderr.close()
    assert lines[0].startswith("Timeout (0:00:00.5")
