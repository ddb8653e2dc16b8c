import ast
import contextlib
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict, namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from k2rl.errors import UnavailableError, UserError
from k2rl.protocols import CallTest, Limits, ProgramTest, ScriptTest, StdioTest
from k2rl.sandbox import connect, remote
from k2rl.sandbox.canonical import NoLiteralError, canonical
from k2rl.sandbox.compare import same_output
from k2rl.sandbox.local import LocalSandbox
from k2rl.sandbox.processes import Zygote
from k2rl.sandbox.remote import FusionSandbox, RemoteSandbox
from k2rl.sandbox.server import make_server
from k2rl.types import Status

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jails are made of Linux calls")

SQUARE = "def f(x):\n    return x * x + 1"
CALLS: list[ProgramTest] = [CallTest("f", f"({x},)", str(x * x + 1)) for x in range(4)]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[LocalSandbox]:
    made = LocalSandbox()
    yield made
    made.close()


# Canonical bytes -----------------------------------------------------------------------------------------------------

Point = namedtuple("Point", "x y")
VALUES: list[Any] = [
    *(None, 0, 1, -1, 2**70, True, False, 0.0, -0.0, 1.0, 0.5, -2.5, 1e300, 2.0**70, math.inf, -math.inf, 1 + 0j, 2j),
    *("", "1", "a b", "\ud800", "é", b"", b"1", bytearray(b"1")),
    *([], [1], [1, 2], [[1], 2], (), (1,), (1, 2), [(1,)], Point(1, 2)),
    *({}, {1: 2}, {1: 2, 3: 4}, {3: 4, 1.0: 2}, OrderedDict({3: 4, 1: 2}), Counter("a"), {"a": 1}),
    *(
        set(),
        {1, 2},
        frozenset({2, 1.0}),
        {1: 0, 2: 0}.keys(),
        {(1, 2)},
        Fraction(1, 2),
        Decimal("0.5"),
        Fraction(4, 2),
    ),
]


def test_canonical_bytes_are_equal_exactly_where_values_are() -> None:
    for a in VALUES:
        for b in VALUES:
            assert (canonical(a) == canonical(b)) == (a == b), (a, b)


def test_what_is_no_builtin_value_has_no_canonical_form() -> None:
    for value in (object(), print, int, (x for x in "ab"), range(3)):
        with pytest.raises(NoLiteralError):
            canonical([value])
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(RecursionError):
        canonical(loop)


def test_contest_whitespace() -> None:
    assert same_output(b"1 2\n3", b"1 2 \n3\n\n")
    assert same_output(b"a\r\nb\r\n", b"a\nb")
    assert not same_output(b"1  2", b"1 2")
    assert not same_output(b"1\n\n2", b"1\n2")
    assert not same_output(b" 1", b"1")


# The local jail ------------------------------------------------------------------------------------------------------


def test_each_test_has_its_own_finding(sandbox: LocalSandbox) -> None:
    tests = [*CALLS, CallTest("f", "(5,)", "0"), CallTest("g", "()", "1"), ScriptTest("assert f(2) == 5")]
    outcome = sandbox.run(SQUARE, tests)
    assert outcome.passed == (True, True, True, True, False, False, True)
    assert outcome.verdict.status is Status.WRONG
    assert outcome.verdict.score == 0.0
    assert "2 of 7 tests failed: f(5) is not 0" in outcome.verdict.detail


def test_a_right_program_is_correct(sandbox: LocalSandbox) -> None:
    outcome = sandbox.run(
        SQUARE, [*CALLS, ScriptTest("assert f(2) == 5"), ScriptTest("y = f(3)"), ScriptTest("assert y == 10")]
    )
    assert outcome.verdict.status is Status.CORRECT
    assert 0 < outcome.cpu_s < 5
    assert outcome.wall_s > 0


def test_stdin_and_stdout(sandbox: LocalSandbox) -> None:
    program = (
        "import sys\nn = int(input())\nprint(sum(map(int, sys.stdin.read().split())), n)\nif n > 9: raise SystemExit(n)"
    )
    right = [StdioTest("2\n3 4\n", "7 2"), StdioTest("1\n5", "5 1\n"), StdioTest("0\n", "0 0")]
    assert sandbox.run(program, right).verdict.status is Status.CORRECT
    outcome = sandbox.run(program, [*right, StdioTest("10\n1", "1 10"), StdioTest("2\n3 4\n", "8 2")])
    assert outcome.passed == (True, True, True, False, False)
    assert "exit code 10" in outcome.verdict.detail


def test_a_looping_program_is_not_run_on_every_input(sandbox: LocalSandbox) -> None:
    program = "n = int(input())\nwhile n > 3: pass\nprint(n)"
    started = time.monotonic()
    outcome = sandbox.run(program, [StdioTest(str(n), str(n)) for n in range(100)], Limits(cpu_s=1.0, wall_s=10.0))
    assert outcome.passed == (True,) * 4 + (False,) * 96
    assert time.monotonic() - started < 40
    assert "96 of 100 tests failed" in outcome.verdict.detail


def test_a_slow_program_that_passes_is_run_on_every_input(sandbox: LocalSandbox) -> None:
    program = "import time\nn = int(input())\nwhile time.process_time() < 0.35: pass\nprint(n)"
    tests = [StdioTest(str(n), str(n)) for n in range(5)]
    assert sandbox.run(program, tests, Limits(cpu_s=0.3, wall_s=20.0)).passed == (True,) * 5


def test_what_is_no_program_is_malformed(sandbox: LocalSandbox) -> None:
    tests: list[list[ProgramTest]] = [[CALLS[0]], [ScriptTest("assert f(0) == 1")], [StdioTest("", "1")]]
    for one in tests:
        assert sandbox.run("Sure! Here is the code:", one).verdict.status is Status.MALFORMED


def test_a_script_without_a_call_of_the_program_fails(sandbox: LocalSandbox) -> None:
    assert sandbox.run("x = 1", [ScriptTest("assert True")]).verdict.status is Status.WRONG


def test_scripts_reach_objects_exceptions_callbacks_and_iterators(sandbox: LocalSandbox) -> None:
    program = """
import collections
class Tree:
    def __init__(self, value, left=None, right=None):
        self.value, self.left, self.right = value, left, right
    def __len__(self): return 1 + len(self.left or ()) + len(self.right or ())
def depth(tree): return 0 if tree is None else 1 + max(depth(tree.left), depth(tree.right))
def apply(function, values): return [function(v) for v in values]
def only(values, kind): return [v for v in values if isinstance(v, kind)]
def fail(): raise KeyError("k")
def count(n):
    for i in range(n): yield i
def letters(text): return collections.Counter(text)
"""
    scripts = (
        "t = Tree(1, Tree(2))\nt.right = Tree(3, None, Tree(4))\nassert depth(t) == 3 and len(t) == 4",
        "assert apply(lambda v: v * 2, (1, 2)) == [2, 4]",
        "assert only([1, 'a', 2.0], str) == ['a']",
        "try: fail()\nexcept KeyError as error: caught = error\nassert 'k' in str(caught)",
        "assert list(count(3)) == [0, 1, 2]\nassert [x for x in count(2)] == [0, 1]",
        "assert letters('aab') == {'a': 2, 'b': 1}",
        "import math\nassert math.isclose(apply(math.sqrt, [2])[0] ** 2, 2)",
        "assert apply(abs, [-1, 2]) == [1, 2]",
    )
    for script in scripts:
        assert sandbox.run(program, [ScriptTest(script)]).verdict.status is Status.CORRECT, script


def test_a_function_named_like_a_builtin_is_the_programs_where_the_test_says_so(sandbox: LocalSandbox) -> None:
    program = "def sum(a, b):\n    return a + b\ndef len(x):\n    return 7"
    assert sandbox.run(program, [ScriptTest("assert sum(2, 3) == 5", ("sum",))]).verdict.score == 1.0
    assert sandbox.run(program, [ScriptTest("assert len([sum(2, 3)]) == 1", ("sum",))]).verdict.score == 1.0


def test_a_callback_gives_no_way_into_the_tests(sandbox: LocalSandbox) -> None:
    program = "def f(g):\n    try: return g.__globals__['answer']\n    except Exception as e: return type(e).__name__"
    assert sandbox.run(program, [ScriptTest("answer = 5\nassert f(lambda: 1) == 5")]).verdict.score == 0.0


def test_variables_of_a_test_may_be_named_like_modules(sandbox: LocalSandbox) -> None:
    scripts = (
        "for msvcrt in (1, 2):\n    assert f(msvcrt) > msvcrt",
        "nt = [3]\nnt.append(f(3))\nassert nt == [3, 10]",
    )
    for script in (*scripts, "assert (lambda nt: nt.real)(f(3)) == 10"):
        assert sandbox.run(SQUARE, [ScriptTest(script, ("f",))]).verdict.score == 1.0


def test_input_is_read_in_blocks(sandbox: LocalSandbox) -> None:
    program = "import sys\nread = sys.stdin.buffer.readline\nprint(sum(int(read()) for _ in range(200_000)))"
    test = StdioTest("12345\n" * 200_000, str(12345 * 200_000))
    assert sandbox.run(program, [test], Limits(cpu_s=1.0)).verdict.score == 1.0


def test_verdicts_repeat(sandbox: LocalSandbox) -> None:
    program = "seen = set()\ndef f(x):\n    seen.add(x)\n    return len(seen) + len(str(seen))"
    outcomes = {sandbox.run(program, [CallTest("f", f"('{c}',)", "13") for c in "abcdef"]).passed for _ in range(5)}
    assert len(outcomes) == 1


def test_no_tests_and_tests_that_are_no_literals_are_refused(sandbox: LocalSandbox) -> None:
    for tests in ([], [CallTest("f", "(1,)", "g(1)")], [CallTest("f", "1", "1")]):
        with pytest.raises(ValueError, match=r"verdict|malformed|tuple"):
            sandbox.run(SQUARE, tests)


def test_a_dead_fork_server_is_replaced() -> None:
    sandbox = LocalSandbox(workers=1)
    try:
        slot = sandbox._idle.get()
        assert slot is not None
        os.kill(slot._process.pid, signal.SIGKILL)
        sandbox._idle.put(slot)
        assert sandbox.run(SQUARE, CALLS).verdict.score == 1.0
        assert sandbox.restarts == 1
    finally:
        sandbox.close()


def test_a_fork_server_that_dies_under_a_program_is_replaced() -> None:
    sandbox = LocalSandbox(workers=1)
    try:
        slot = sandbox._idle.get()
        assert slot is not None
        sandbox._idle.put(slot)
        threading.Timer(0.5, os.kill, (slot._process.pid, signal.SIGKILL)).start()
        slow = "import time\ndef f(x):\n    time.sleep(0.4)\n    return x * x + 1"
        assert sandbox.run(slow, CALLS).verdict.score == 1.0
        assert sandbox.restarts == 1
    finally:
        sandbox.close()


def test_an_interrupted_program_leaves_nothing_to_the_next(sandbox: LocalSandbox) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            sandbox.run("import time\ndef f(x):\n    time.sleep(0.6)", CALLS)
    finally:
        signal.signal(signal.SIGALRM, before)
    late = "import time\ndef f(x):\n    time.sleep(0.2)\n    return x * x + 1"
    assert sandbox.run(late, CALLS).verdict.score == 1.0


def test_closed_all_fork_servers_are_gone_and_others_come() -> None:
    sandbox = LocalSandbox(workers=3)
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(sandbox.run, "import time\ntime.sleep(0.5)", CALLS)
    family = _descendants(os.getpid())
    sandbox.close()
    assert len({pid for pid in family if _alive(pid)} & _descendants(os.getpid())) <= len(family) - 6
    assert sandbox.run(SQUARE, CALLS).verdict.score == 1.0
    sandbox.close()


def test_without_file_descriptors_no_program_is_blamed_and_none_are_lost(sandbox: LocalSandbox) -> None:
    tests: list[list[ProgramTest]] = [[CALLS[0]], [ScriptTest("assert f(0) == 1")], [StdioTest("", "")]]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_fds = len(os.listdir("/proc/self/fd"))
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 30, hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        statuses = set()
        for _ in range(20):
            statuses |= {sandbox.run(SQUARE, test).verdict.status for test in tests}
            os.close(taken.pop())
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert statuses == {Status.INFRA_ERROR, Status.CORRECT}
    assert len(os.listdir("/proc/self/fd")) == open_fds


def test_a_forked_process_has_fork_servers_of_its_own(sandbox: LocalSandbox) -> None:
    first = sandbox._idle.get()
    sandbox._idle.put(first)
    child = os.fork()
    if child == 0:
        taken = sandbox._idle.get()
        sandbox._idle.put(taken)
        right = taken is None and sandbox.run(SQUARE, CALLS).verdict.score == 1.0
        sandbox.close()
        os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0
    assert first is not None
    assert sandbox.run(SQUARE, CALLS).verdict.score == 1.0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_file_systems_mounted_among_the_libraries_are_read_only_too() -> None:
    code = (
        "import os; from k2rl.sandbox import syscalls as sc; from k2rl.sandbox.local import LocalSandbox\n"
        "from k2rl.protocols import CallTest\n"
        "place = next(e.path for e in os.scandir('/usr/lib') if e.is_dir(follow_symlinks=False))\n"
        "sc.unshare(sc.CLONE_NEWNS); sc.mount(None, '/', None, sc.MS_REC | sc.MS_PRIVATE)\n"
        "sc.mount('x', place, 'tmpfs', 0); open(place + '/x', 'w').close(); os.chown(place + '/x', 65534, 65534)\n"
        "program = f'import os\\ndef f(): os.chmod({place!r} + \"/x\", 0o600)'\n"
        "print(LocalSandbox('full', 1).run(program, [CallTest('f', '()', 'None')]).verdict.detail)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Read-only file system" in done.stdout, done.stderr


def test_where_nothing_can_be_jailed_a_verdict_has_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = LocalSandbox(workers=1)
    sandbox.close()

    def broken(self: Zygote, level: str) -> None:
        raise OSError(12, "no memory")

    monkeypatch.setattr(Zygote, "__init__", broken)
    outcome = sandbox.run(SQUARE, CALLS)
    assert outcome.verdict.status is Status.INFRA_ERROR
    assert outcome.verdict.score is None
    assert "no memory" in outcome.verdict.detail


def test_programs_die_with_their_broker() -> None:
    code = (
        "import sys, threading; from k2rl.sandbox.local import LocalSandbox; from k2rl.protocols import *\n"
        "sandbox = LocalSandbox(workers=2)\n"
        "sleep = 'import time\\ndef f(x):\\n    time.sleep(1000)'\n"
        "for _ in range(2): threading.Thread(target=sandbox.run, args=(sleep, [CallTest('f', '(1,)', '1')])).start()\n"
        "import time; time.sleep(1); print('ready', flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as broker:
        assert broker.stdout is not None
        assert broker.stdout.readline() == "ready\n"
        family = _descendants(broker.pid)
        assert len(family) >= 4
        broker.kill()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in family):
        assert time.monotonic() < deadline, "programs outlive their broker"
        time.sleep(0.05)


def test_honest_programs_beside_spinning_ones(sandbox: LocalSandbox) -> None:
    spin = ("while True: pass", CALLS, Limits(cpu_s=1.0, wall_s=20.0))
    with ThreadPoolExecutor(8) as pool:
        spinners = [pool.submit(sandbox.run, *spin) for _ in range(4)]
        honest = [pool.submit(sandbox.run, SQUARE, CALLS) for _ in range(50)]
        assert all(h.result().verdict.score == 1.0 for h in honest)
        assert all("processor time" in s.result().verdict.detail for s in spinners)


_NO_NAMESPACES = """
import json, sys
from k2rl.sandbox import syscalls as sc
from k2rl.errors import UnavailableError
denied = set(json.loads(sys.argv[1]))
sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
sc.seccomp_restrict(sc.seccomp_filter([n for n in range(470) if n not in denied], (), ()))
from k2rl.sandbox.local import LocalSandbox
try:
    print("level", LocalSandbox(workers=1).level)
except UnavailableError as error:
    print("refused", error)
"""


def _under(denied: list[int]) -> str:
    """What an ordinary user's sandbox says where these system calls are denied."""
    from test_sandbox_attacks import environment, identity, ordinary_python

    python = ordinary_python()
    if python is None:
        pytest.skip("no Python of this version that an ordinary user can start")
    done = subprocess.run(
        [python, "-c", _NO_NAMESPACES, json.dumps(denied)],
        env=environment(),
        capture_output=True,
        text=True,
        cwd="/",
        **identity("ordinary"),
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_where_namespaces_are_denied_the_weaker_level_is_taken() -> None:
    assert _under([272, 165]) == "level landlock\n"  # unshare, mount


def test_where_landlock_is_missing_too_it_refuses_and_says_why() -> None:
    said = _under([272, 165, 444])
    assert said.startswith(
        "refused no jail for untrusted programs on this machine (full: unshare: Operation not permitted; landlock: "
    )
    assert "args.sandbox=unsafe" in said


def test_a_level_whose_canary_gets_through_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from k2rl.sandbox import canaries

    leaky = canaries.Canary("a leak", "def attack(): return 'not stopped'")
    monkeypatch.setattr(canaries, "of", lambda level: (leaky,))
    with pytest.raises(UnavailableError, match=r"full: the probe 'a leak' got through .*landlock: "):
        LocalSandbox()


# Elsewhere -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(sandbox: LocalSandbox) -> Iterator[str]:
    server = make_server(sandbox, "127.0.0.1", 0, None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_served_sandbox_says_what_the_local_one_does(served: str, sandbox: LocalSandbox) -> None:
    remote = RemoteSandbox(served)
    assert remote.level == sandbox.level
    tests = [*CALLS, ScriptTest("assert f(2) == 5", ("f",)), StdioTest("1\n", "")]
    for program in (SQUARE, "def f(x):\n    return '\ud800'", "print(", "import os\nos._exit(0)"):
        here, there = sandbox.run(program, tests), remote.run(program, tests)
        assert (there.verdict, there.passed) == (here.verdict, here.passed)


def test_what_is_wrong_on_the_way_is_never_a_score(served: str) -> None:
    remote = RemoteSandbox(served)
    remote.url = "http://127.0.0.1:9"
    outcome = remote.run(SQUARE, CALLS)
    assert outcome.verdict.status is Status.INFRA_ERROR
    assert "127.0.0.1:9" in outcome.verdict.detail


def test_ill_formed_jobs_are_named(served: str) -> None:
    remote = RemoteSandbox(served)
    with pytest.raises(UserError, match="args must be the source of a tuple"):
        remote.run(SQUARE, [CallTest("f", "5", "1")])
    with pytest.raises(UserError, match="cpu_s must be a number above 0"):
        remote.run(SQUARE, CALLS, Limits(cpu_s=-1))


def test_a_token_is_asked_for(sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server(sandbox, "127.0.0.1", 0, "secret")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    remote = RemoteSandbox(f"http://127.0.0.1:{server.server_address[1]}")
    with pytest.raises(UserError, match="token"):
        remote.run(SQUARE, CALLS)
    monkeypatch.setenv("K2RL_SANDBOX_TOKEN", "secret")
    assert remote.run(SQUARE, CALLS).verdict.score == 1.0
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError, match="K2RL_SANDBOX_TOKEN"):
        make_server(sandbox, "0.0.0.0", 0, None)


class _Fusion(BaseHTTPRequestHandler):
    """A service of SandboxFusion's form, with a plain interpreter behind it."""

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert job["language"] == "python"
        if "SANDBOX FAILS" in job["code"]:
            body: dict[str, Any] = {"status": "SandboxError", "message": "no memory", "run_result": None}
        else:
            try:
                ran = subprocess.run(
                    [sys.executable, "-c", job["code"]], input=job["stdin"], capture_output=True, text=True, timeout=5
                )
                result = {
                    "status": "Finished",
                    "return_code": ran.returncode,
                    "stdout": ran.stdout,
                    "stderr": ran.stderr,
                }
            except subprocess.TimeoutExpired:
                result = {"status": "TimeLimitExceeded", "return_code": None, "stdout": "", "stderr": ""}
            body = {
                "status": "Success" if result["return_code"] == 0 else "Failed",
                "message": "",
                "run_result": result,
            }
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_sandbox_fusion() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Fusion)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fusion = FusionSandbox(f"http://127.0.0.1:{server.server_address[1]}")
    assert fusion.run(SQUARE + "\nprint('noise')", CALLS).verdict.score == 1.0
    assert fusion.run("def f(x):\n    return 1", CALLS).passed == (True, False, False, False)
    for trick in (
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "print('UEFTU0VE')",
        "while True: pass",
        "f = 1",
    ):
        assert fusion.run(trick, CALLS).verdict.score == 0.0
    echo = "print(int(input()) * 2)"
    assert fusion.run(echo, [StdioTest("4", "8\n"), StdioTest("5", "11")]).passed == (True, False)
    assert fusion.run("print(", [StdioTest("4", "8\n")]).verdict.status is Status.MALFORMED
    assert fusion.run(SQUARE, [ScriptTest("assert f(1) == 2")]).verdict.status is Status.VERIFIER_ERROR
    assert fusion.run("# SANDBOX FAILS", [StdioTest("", "")]).verdict.status is Status.INFRA_ERROR
    server.shutdown()
    server.server_close()


def test_places() -> None:
    assert connect("local") is connect()
    with pytest.raises(UserError, match="no sandbox 'docker': allowed are local"):
        connect("docker")
    with pytest.raises(UserError, match="no sandbox 5: allowed are local"):
        connect(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1:port", "a b"])
def test_a_wrong_address_is_the_users_error(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    for kind, service in (("", "k2rl sandbox"), ("fusion+", "SandboxFusion service")):
        with pytest.raises(UserError, match=f"^no {service} at http://{address}: ") as error:
            connect(f"{kind}http://{address}")
        assert not isinstance(error.value, UnavailableError), "an optional environment would be left out"


def _descendants(pid: int) -> set[int]:
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def _alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_zygote_reads_no_payload() -> None:
    """Whoever changes the fork server must not let it read what programs say."""
    import k2rl.sandbox.zygote as zygote

    tree = ast.parse(Path(zygote.__file__).read_text())
    serve = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "_serve")
    calls = {ast.unparse(n.func) for n in ast.walk(serve) if isinstance(n, ast.Call)}
    assert not calls & {"os.read", "open", "os.fdopen"}


@pytest.mark.parametrize(("end", "code", "said"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 0, "")])
def test_the_command_serves_until_it_is_told_to_end(end: signal.Signals, code: int, said: str) -> None:
    # A shell may have started the tests with Ctrl-C ignored, which children inherit.
    command = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from k2rl.cli import main; main()",
        *("sandbox", "serve", "--port", "0", "--workers", "1"),
    )
    server = subprocess.Popen([sys.executable, "-c", *command], stdout=-1, stderr=-1, text=True)
    try:
        assert server.stdout is not None
        place = re.search(r"http://[^;]+", server.stdout.readline())
        assert place is not None
        assert RemoteSandbox(place.group()).run(SQUARE, CALLS).verdict.score == 1.0
        server.send_signal(end)
        _, errors = server.communicate(timeout=30)
    finally:
        server.kill()
    assert (server.returncode, errors) == (code, said)


def test_the_doctor_knows_the_level() -> None:
    from k2rl.doctor import examine

    (check,) = [c for c in examine() if c.what == "sandbox"]
    assert check.status == "ok"
    assert check.found.startswith(("full (", "landlock ("))
