"""Every attack on the sandbox, as root and as an ordinary user, at both levels of jail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from sandbox_attacks import (
    FORGERIES,
    GREEDY,
    HONEST,
    HONEST_SCRATCH,
    HONEST_STDIO,
    ONLY_FULL,
    TRICKS,
    Victims,
    escapes,
)

import k2rl

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jails are made of Linux calls")

ORDINARY = 1234
SCRIPT = Path(__file__).with_name("sandbox_attacks.py")
WHO = ("root, full", "ordinary, full", "ordinary, landlock")
ESCAPES = sorted(escapes(Victims(1, 1, "", "", "", "", 1)))

Results = dict[str, dict[str, str]]


def ordinary_python() -> str | None:
    """An interpreter of this version that an ordinary user can start (this one may lie in root's home)."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        command = [candidate, "-c", "import numpy, gymnasium, k2rl.sandbox.local"]
        try:
            if subprocess.run(command, env=environment(), capture_output=True, **identity("ordinary")).returncode == 0:
                return candidate
        except OSError:
            continue
    return None


def environment() -> dict[str, str]:
    places = [str(Path(k2rl.__file__).parent.parent), sysconfig.get_path("purelib")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def identity(who: str) -> dict[str, Any]:
    return {"user": ORDINARY, "group": ORDINARY, "extra_groups": []} if who == "ordinary" and os.geteuid() == 0 else {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Results | str]:
    """All attacks by all; or why they can't be run."""
    started: dict[str, subprocess.Popen[str] | str] = {}
    for name in WHO:
        who, level = name.split(", ")
        if who == "root" and os.geteuid() != 0:
            started[name] = "the tests do not run as root"
            continue
        python = sys.executable if who == "root" else ordinary_python()
        if python is None:
            started[name] = "no Python of this version that an ordinary user can start"
            continue
        command = [python, str(SCRIPT), level]
        pipe = subprocess.PIPE
        started[name] = subprocess.Popen(
            command, env=environment(), stdout=pipe, stderr=pipe, text=True, cwd="/", **identity(who)
        )
    found: dict[str, Results | str] = {}
    for name, process in started.items():
        if isinstance(process, str):
            found[name] = process
        else:
            out, err = process.communicate(timeout=300)
            found[name] = json.loads(out) if process.returncode == 0 else f"failed: {err[-2000:]}"
    return found


@pytest.fixture(params=WHO)
def results(request: pytest.FixtureRequest, runs: dict[str, Results | str]) -> Results:
    found = runs[request.param]
    if isinstance(found, str):
        if found.startswith("failed"):
            pytest.fail(found)
        pytest.skip(found)
    return found


@pytest.mark.parametrize("name", ESCAPES)
def test_no_program_gets_out(results: Results, name: str) -> None:
    if name in ONLY_FULL and results["sandbox"]["level"] != "full":
        pytest.skip("not stopped, or nothing to stop, at this level")
    assert results["escapes"][name] == "accepted"


@pytest.mark.parametrize("name", GREEDY)
def test_what_a_program_may_use_is_limited(results: Results, name: str) -> None:
    assert results["greedy"][name].startswith(("wrong: ", "malformed: "))


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("how", ["calls", "scripts"])
def test_no_verdict_is_forged(results: Results, how: str, name: str) -> None:
    assert results[f"forgeries by {how}"][name].startswith(("wrong: ", "malformed: "))


@pytest.mark.parametrize("name", TRICKS)
def test_no_test_is_talked_into_passing(results: Results, name: str) -> None:
    assert results["tricks"][name].startswith("wrong: ")


@pytest.mark.parametrize("name", HONEST_STDIO)
def test_programs_as_written_for_contests_are_accepted(results: Results, name: str) -> None:
    assert results["honest by stdin"][name] == "accepted"


@pytest.mark.parametrize("name", [*HONEST, *HONEST_SCRATCH])
@pytest.mark.parametrize("how", ["calls", "scripts"])
def test_honest_programs_are_accepted(results: Results, how: str, name: str) -> None:
    if name in HONEST_SCRATCH and results["sandbox"]["level"] != "full":
        pytest.skip("there is no scratch folder at this level")
    assert results[f"honest by {how}"][name] == "accepted"


def test_an_emptied_argument_stays_what_it_was(results: Results) -> None:
    assert results["mutation"]["empties its argument"].startswith("wrong: ")


def test_a_program_holds_no_file_but_its_own(results: Results) -> None:
    assert results["file descriptors"] == {"calls": "accepted", "scripts": "accepted"}


def test_afterwards_all_is_well(results: Results) -> None:
    assert set(results["after"].values()) == {"accepted"}
    assert results["sandbox"]["restarts"] == "0"
