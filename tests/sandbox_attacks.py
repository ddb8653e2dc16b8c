# ruff: noqa: E501  (a program reads best on a line of its own)
"""Programs that attack the sandbox, and a script that runs them all and prints what came of each as JSON.

`python tests/sandbox_attacks.py LEVEL` is run by the tests as root and as an ordinary user.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass
from typing import Any

from k2rl.protocols import CallTest, Limits, ProgramTest, ScriptTest, StdioTest
from k2rl.sandbox.local import LocalSandbox

QUICK = Limits(cpu_s=1.0, wall_s=4.0, memory_mb=256, output_bytes=200_000)
CONTROL = ("def f(x):\n    return x * x + 1", (CallTest("f", "(3,)", "10"),))


@dataclass(frozen=True)
class Victims:
    """What the attackers are after, outside."""

    tcp_port: int
    udp_port: int
    abstract: str
    path: str
    datagrams: str
    secret_file: str
    pid: int


def escapes(v: Victims) -> dict[str, str]:
    """Name -> statements that succeed only if the jail leaks; a refusal raises OSError."""
    libc = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"

    def refused(call: str) -> str:
        return f"{libc}if libc.{call} < 0: raise OSError(ctypes.get_errno(), 'refused')"

    unix = "s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)\n"
    return {
        "TCP to loopback": f"socket.create_connection(('127.0.0.1', {v.tcp_port}), 1)",
        "UDP": f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {v.udp_port}))",
        "abstract unix socket": f"{unix}s.connect({v.abstract!r})",
        "path unix socket": f"{unix}s.connect({v.path!r})",
        "datagram by a pair to a path": f"{libc}{_DATAGRAM}".replace("ADDRESS", repr(v.datagrams.encode() + b"\0")),
        "read /etc/passwd": "open('/etc/passwd').read()",
        "read a file beside the project": f"open({v.secret_file!r}).read()",
        "read the project": f"open({__file__!r}).read()",
        "read installed packages": _READ_PACKAGES,
        "change the mode of a foreign file": f"os.chmod({v.secret_file!r}, 0o604)",
        "change the time of a foreign file": f"os.utime({v.secret_file!r}, (1, 1))",
        "truncate a foreign file": f"os.truncate({v.secret_file!r}, 0)",
        "take a lease": "import fcntl, json; fcntl.fcntl(open(json.__file__), 1024, fcntl.F_UNLCK)",
        "have a signal sent": (
            f"import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, {v.pid})\nfcntl.fcntl(r, 10, 9)\n"
            "fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\nos.write(w, b'x')"
        ),
        "2000 threads": f"{libc}{_THREADS}",
        "environment of a process": f"open('/proc/{v.pid}/environ', 'rb').read()",
        "memory of a process": f"open('/proc/{v.pid}/mem', 'rb').read(1)",
        "environment of its own parent": "open(f'/proc/{os.getppid()}/environ', 'rb').read()",
        "kill a process": f"os.kill({v.pid}, 9)",
        "kill everything": "os.kill(-1, 9)",
        "kill its parent": "os.kill(os.getppid() or -1, 9)",
        "tgkill a process": refused(f"syscall(234, {v.pid}, {v.pid}, 9)"),
        "ptrace": refused(f"ptrace(16, {v.pid}, None, None)"),
        "fork": "if os.fork() == 0: os._exit(0)",
        "vfork by clone": refused("syscall(56, 17, 0, 0, 0, 0)"),
        "clone3": refused("syscall(435, 0, 0)"),
        "run a shell": "os.posix_spawn('/bin/sh', ['sh', '-c', 'true'], {})",
        "exec": "os.execv('/bin/sh', ['sh', '-c', 'true'])",
        "user namespace": refused("unshare(0x10000000)"),
        "mount": refused("mount(b'x', b'/tmp', b'tmpfs', 0, None)"),
        "io_uring": refused("syscall(425, 8, ctypes.create_string_buffer(200))"),
        "SysV shared memory": refused("shmget(1234, 4096, 0o1666)"),
        "message queue": refused("msgget(1234, 0o1666)"),
        "bpf": refused("syscall(321, 0, 0, 0)"),
        "keyring": refused("syscall(250, 0, -3, 1)"),
        "memfd to execute": refused("syscall(319, b'x', 0)"),
        "write to the interpreter": "import json; open(json.__file__, 'a')",
        "write to /usr": "open('/usr/x', 'w')",
        "write to the root": "open('/x', 'w')",
        "a symbolic link": "os.symlink('/etc/passwd', '/tmp/l'); open('/tmp/l').read()",
        "a hard link": "open('/tmp/a', 'w').close(); os.link('/tmp/a', '/tmp/b')",
        "out of the root by ..": "open('/../../../etc/passwd').read()",
        "out by a file descriptor": "for fd in range(3, 64): os.fchdir(fd); open('etc/passwd').read()",
        "more than the scratch space": "for i in range(40): open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))",
        "more files than allowed": "for i in range(2000): open(f'/tmp/{i}', 'w').close()",
        "execute from the scratch folder": (
            "open('/tmp/x', 'w').write('#!/bin/sh\\n'); os.chmod('/tmp/x', 0o755); os.execv('/tmp/x', ['x'])"
        ),
        "become root": "os.setuid(0); open('/etc/shadow').read()",
        "raise a limit": "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "another program's limits": refused(f"syscall(302, {v.pid}, 9, 0, ctypes.create_string_buffer(16))"),
    }


# An address whose lower half is null.
_DATAGRAM = """
import struct
libc.mmap.restype, place = ctypes.c_void_p, ctypes.c_void_p(1 << 32)
libc.mmap(place, 4096, 3, 0x32, -1, 0)
address = struct.pack("H", 1) + ADDRESS
ctypes.memmove(place, address, len(address))
mine, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
if libc.sendto(mine.fileno(), b"x", ctypes.c_size_t(1), 0, place, len(address)) < 0:
    raise OSError(ctypes.get_errno(), "refused")
"""
_THREADS = """
stack = ctypes.create_string_buffer(1 << 16)
top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 15))
for _ in range(2000):
    if libc.clone(libc.pause, top, 0x50F00, None) < 0: raise OSError(ctypes.get_errno(), "refused")
"""
_READ_PACKAGES = """
import glob, sysconfig
opened = 0
for folder in (os.path.dirname(sysconfig.get_path("stdlib")), "/usr/lib", "/usr/local/lib"):
    for path in glob.glob(folder + "/python*/*-packages/*/*.py") + glob.glob(folder + "/python*/*-packages/*.*"):
        try: open(path).close()
        except OSError: continue
        opened += 1
if not opened: raise OSError("no package can be read")
"""


def escape_program(statements: str) -> str:
    return (
        "import os, socket\ndef attack():\n    try:\n"
        + textwrap.indent(statements, " " * 8)
        + ("\n    except (OSError, ValueError):\n        return 'stopped'\n    return 'got through'\n")
    )


# Not for the weaker level: it has no scratch folder, and the user's own processes count as a program's threads would.
ONLY_FULL = {"more than the scratch space", "more files than allowed", "2000 threads"}

GREEDY = {
    "endless loop": "def f(x):\n    while True: pass",
    "endless loop at the top": "while True: pass",
    "sleeps": "import time\ndef f(x):\n    time.sleep(1000)",
    "ignores signals and loops": (
        "import signal\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n    except Exception: pass\n"
        "def f(x):\n    while True: pass"
    ),
    "deep recursion": "def f(x):\n    return f(x)",
    "deep recursion without a limit": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return f(x)",
    "10 GB": "def f(x):\n    return len(bytearray(10 << 30))",
    "10 GB in small pieces": "def f(x):\n    kept = []\n    while True: kept.append(bytearray(1 << 20))",
    "1 GB of output": "def f(x):\n    while True: print('x' * 100000)",
    "1 GB result": "def f(x):\n    return 'x' * (100 << 20)",
    "1 GB to the result pipe": "import os\ndef f(x):\n    while True: os.write(4, b'v' * 60000)",
    "thread bomb": "import threading, time\ndef f(x):\n    while True: threading.Thread(target=time.sleep, args=(99,)).start()",
    "hangs in a thread after its answer": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\ndef f(x):\n    return 0"
    ),
    "closes everything": "import os\nos.closerange(0, 64)\ndef f(x):\n    return 10",
    "segmentation fault": "import ctypes\ndef f(x):\n    ctypes.string_at(0)",
    "exhausts the parser": "f = " + "(" * 5000 + ")" * 5000,
    "exhausts the compiler": "f = " + "-" * 100_000 + "1",
    "null bytes": "def f(x):\n    return '\0",
    "lone surrogates": "def f(x):\n    return '\ud800'",
}

_ALWAYS = """
class Always:
    __hash__ = lambda self: 0
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
    def __contains__(self, other): return True
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
"""

FORGERIES = {
    "sys.exit at the top": "import sys\nsys.exit(0)",
    "os._exit at the top": "import os\nos._exit(0)",
    "sys.exit in the call": "import sys\ndef f(x):\n    sys.exit(0)",
    "os._exit in the call": "import os\ndef f(x):\n    os._exit(0)",
    "exit code of a failed jail": "import os\nos._exit(70)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x):\n    raise SystemExit(0)",
    "excepthook": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef f(x):\n    raise ValueError",
    "equal to everything": f"{_ALWAYS}\ndef f(x):\n    return Always()",
    "an int equal to everything": (
        "class I(int):\n    __hash__ = int.__hash__\n    def __eq__(self, o): return True\n"
        "    def __ne__(self, o): return False\ndef f(x):\n    return I(0)"
    ),
    "a string equal to everything": (
        "class S(str):\n    __hash__ = str.__hash__\n    def __eq__(self, o): return True\ndef f(x):\n    return S('')"
    ),
    "a list equal to everything": (
        "class L(list):\n    __hash__ = None\n    def __eq__(self, o): return True\ndef f(x):\n    return L()"
    ),
    "patched builtins": (
        "import builtins\nfor n in ('abs', 'all', 'any', 'len', 'sum', 'sorted', 'isinstance', 'type', 'repr'):\n"
        "    setattr(builtins, n, lambda *a, **k: True)\ndef f(x):\n    return 0"
    ),
    "patched AssertionError": "import builtins\nbuiltins.AssertionError = SystemExit\ndef f(x):\n    raise AssertionError",
    "patched unittest": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None\n"
        "unittest.TestCase.run = lambda *a, **k: None\ndef f(x):\n    return 0"
    ),
    "prints a verdict": (
        'print(\'ALL TESTS PASSED\')\nprint(\'{"status": "correct", "score": 1.0}\')\n'
        "def f(x):\n    print('PASSED')\n    return 0"
    ),
    "patched json": (
        "import json\njson.dumps = lambda *a, **k: '[\"return\", true]'\njson.loads = lambda *a, **k: ['return', True]\n"
        "def f(x):\n    return 0"
    ),
    "patched harness": (
        "import sys\nfor name, module in list(sys.modules.items()):\n    if 'k2rl' in name:\n"
        "        for key in ('canonical', 'frame', '_said'):\n"
        "            if hasattr(module, key): setattr(module, key, lambda *a: b'')\ndef f(x):\n    return 0"
    ),
    "scans frames for expected values": (
        "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
        "        for v in [*frame.f_locals.values(), *frame.f_globals.values()]:\n"
        "            if isinstance(v, dict) and 'expected' in v: return v['expected']\n"
        "            if hasattr(v, 'expected'): return eval(v.expected)\n"
        "        frame = frame.f_back\n    return 0"
    ),
    "scans memory for expected values": (
        "import gc\ndef f(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'expected' in o: return o['expected']\n"
        "        if type(o).__name__ in ('CallTest', 'ScriptTest'): return eval(o.expected)\n    return 0"
    ),
    "reads the tests' files": (
        "import os\ndef f(x):\n    for fd in range(64):\n        try:\n            os.lseek(fd, 0, 0)\n"
        "            text = os.read(fd, 100000).decode()\n            if '== 10' in text or 'expected' in text: return 10\n"
        "        except Exception: pass\n    return 0"
    ),
    "writes results itself": (
        "import os\ndef frame(mark, data): return mark + len(data).to_bytes(4, 'big') + data\n"
        "for i in range(3): os.write(4, frame(b'p', b''))\nfor i in range(3): os.write(4, frame(b'v', b'1'))\n"
        'os.write(4, b\'["names", {"f": true}]\\n\' + b\'["return", true]\\n\' * 20)\nos._exit(0)'
    ),
    "writes results from a thread": (
        "import os, threading\ndef go():\n    while True: os.write(4, b'p\\0\\0\\0\\0' + b'[\"return\", true]\\n')\n"
        "threading.Thread(target=go, daemon=True).start()\ndef f(x):\n    return 0"
    ),
    "counts its calls": "n = [0]\ndef f(x):\n    n[0] += 1\n    return {1: 10, 2: 17, 3: 26, 4: 37, 5: 50, 6: 65}.get(n[0])",
    "empties its argument": "def f(x):\n    if isinstance(x, list): x.clear()\n    return x",
    "colliding hashes": "def f(x):\n    p = (1 << 61) - 1\n    return {i * p: 0 for i in range(1, 3000)}",
    "deep nesting": "def f(x):\n    v = []\n    for _ in range(100000): v = [v]\n    return v",
    "contains itself": "def f(x):\n    v = []\n    v.append(v)\n    return v",
    "huge integer": "def f(x):\n    return 1 << 10_000_000",
    "not a number": "def f(x):\n    return float('nan')",
    "raises everything": "def f(x):\n    raise (AssertionError, StopIteration, GeneratorExit, KeyboardInterrupt)[x % 4]",
    "patched int": (
        "import ctypes\ndef f(x):\n    import gc\n    table = gc.get_referents(int.__dict__)[0]\n"
        "    table['__eq__'] = lambda a, b: True\n    return 0"
    ),
    "asks the tests for their memory": (
        "def f(x):\n    import sys\n    frame = sys._getframe(1)\n    while frame:\n"
        "        peer = frame.f_locals.get('self')\n        if hasattr(peer, 'ask'):\n"
        "            try: return peer.ask('getattr', ['mine', 0, ''], '__globals__')\n            except BaseException: return 0\n"
        "        frame = frame.f_back\n    return 0"
    ),
    "syntax error": "def f(x:\n    return 10",
    "nothing": "",
}

# What tests would believe that did not watch the conversation.
TRICKS = {
    "StopIteration ends map": (
        "def f(x):\n    raise StopIteration",
        "assert all(map(lambda x: f(x) == x * x + 1, (7, 3, 5)))",
    ),
    "ends where an exception is expected": (
        "import os\ndef f(x):\n    os._exit(0)",
        "try: f(1)\nexcept Exception: pass\nelse: assert False",
    ),
    "exits where an exception is expected": (
        "import sys\ndef f(x):\n    sys.exit(0)",
        "try: f(1)\nexcept Exception: pass\nelse: assert False",
    ),
    "sends no message where an exception is expected": (
        "import os\ndef f(x):\n    os.write(4, b'[[[\\n' * 50)",
        "try: f(1)\nexcept: pass\nelse: assert False",
    ),
    "sends no value where an exception is expected": (
        'import os\ndef f(x):\n    os.write(4, b\'["return", ["int", "?"]]\\n\' * 50)',
        "try: f(1)\nexcept: pass\nelse: assert False",
    ),
}

HONEST = {
    "plain": "def f(x):\n    return x * x + 1",
    "lambda": "f = lambda x: x ** 2 + 1",
    "a float": "def f(x):\n    return x * x + 1.0",
    "a fraction": "from fractions import Fraction\ndef f(x):\n    return Fraction(x * x) + 1",
    "recursion": "def f(x, n=None):\n    n = x if n is None else n\n    return 1 if n == 0 else x + f(x, n - 1)",
    "a class": "class A:\n    def __init__(self, x): self.x = x\n    def go(self): return self.x ** 2 + 1\ndef f(x):\n    return A(x).go()",
    "threads": (
        "import threading\ndef f(x):\n    out = []\n    t = threading.Thread(target=lambda: out.append(x * x + 1))\n"
        "    t.start()\n    t.join()\n    return out[0]"
    ),
    "asyncio": "import asyncio\nasync def g(x):\n    await asyncio.sleep(0)\n    return x * x + 1\ndef f(x):\n    return asyncio.run(g(x))",
    "sqlite": "import sqlite3\ndef f(x):\n    return sqlite3.connect(':memory:').execute('select ? * ? + 1', (x, x)).fetchone()[0]",
    "prints": "print('hello')\ndef f(x):\n    print('working', x)\n    return x * x + 1",
    "main guard": "def f(x):\n    return x * x + 1\nif __name__ == '__main__':\n    raise SystemExit(1)",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x):\n    return P(x).x ** 2 + 1",
    "many modules": (
        "import collections, csv, decimal, difflib, email, hashlib, html, ipaddress, pathlib, pprint, secrets, uuid, zlib\n"
        "def f(x):\n    return x * x + 1"
    ),
}
# Only where there is a scratch folder.
HONEST_SCRATCH = {
    "tempfile": (
        "import tempfile\ndef f(x):\n    with tempfile.NamedTemporaryFile('w+') as t:\n        t.write(str(x * x + 1))\n"
        "        t.seek(0)\n        return int(t.read())"
    ),
    "a file of its own": "def f(x):\n    open('notes', 'w').write(str(x * x + 1))\n    return int(open('notes').read())",
}

# As they are written for contests: each reads `STDIN` and prints its first line.
HONEST_STDIO = {
    "exit()": "print(input())\nexit()",
    "quit(0)": "print(input())\nquit(0)",
    "main guard": "def main(): print(input())\nif __name__ == '__main__': main()",
    "open(0)": "print(open(0).read().split()[0])",
    "os.read": "import os\nprint(os.read(0, os.fstat(0).st_size).split()[0].decode())",
    "bytes in and out": "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.readline())",
    "the mode of streams": "import sys\nassert (sys.stdin.mode, sys.stdout.mode) == ('r', 'w')\nprint(input())",
    "its arguments": "import sys\nif sys.argv[1:]: sys.stdin = open(sys.argv[1])\nprint(input())",
    "fileinput": "import fileinput\nprint(next(iter(fileinput.input())), end='')",
    "a file name": "import os\nassert os.path.basename(__file__)\nprint(input())",
    "a thread nobody waits for": (
        "import sys, threading, time\ndef main():\n    time.sleep(0.1)\n    print(input())\nsys.setrecursionlimit(10**6)\n"
        "threading.stack_size(1 << 27)\nthreading.Thread(target=main).start()"
    ),
    "prints at exit": (
        "import atexit, io, sys\nsys.stdout = io.StringIO()\n"
        "atexit.register(lambda: sys.__stdout__.write(sys.stdout.getvalue()))\nprint(input())"
    ),
    "its own stdout": (
        "import sys\nclass Out:\n    def __init__(self, out): self.write = out.write\n"
        "sys.stdout = Out(sys.stdout)\nprint(input())"
    ),
    "limits of its own": (
        "import resource\nresource.setrlimit(resource.RLIMIT_STACK, resource.getrlimit(resource.RLIMIT_STACK))\n"
        "print(input())"
    ),
}
STDIN = "7\n1 2 3\n"

CALLS: tuple[ProgramTest, ...] = tuple(CallTest("f", f"({x},)", str(x * x + 1)) for x in (7, 3, 5, 8, 4, 6))
SCRIPTS: tuple[ProgramTest, ...] = (
    ScriptTest("for x in (7, 3, 5):\n    assert f(x) == x * x + 1", ("f",)),
    ScriptTest("import math\nassert math.isclose(f(8), 65) and abs(f(4) - 17) < 1e-6", ("f",)),
    ScriptTest(
        "def check(candidate):\n    assert candidate(6) == 37\n    assert candidate(3) in (10,)\ncheck(f)", ("f",)
    ),
)
MUTATION = (ScriptTest("x = [3, 1, 2]\nassert f(x) == sorted(x)", ("f",)),)


def run_all(level: str) -> dict[str, dict[str, str]]:
    """Kind -> name -> what happened: `accepted`, or why not."""
    sandbox = LocalSandbox(level or None)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        secret = os.path.join(folder, "secret")
        with open(secret, "w") as file:
            file.write("secret")
        os.chmod(secret, 0o644)
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        unix = []
        datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        datagrams.bind(os.path.join(folder, "d"))
        os.chmod(os.path.join(folder, "d"), 0o777)
        for address in (f"\0k2rl-attack-{os.getpid()}", os.path.join(folder, "s")):
            unix.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            unix[-1].bind(address)
            unix[-1].listen()
        os.chmod(os.path.join(folder, "s"), 0o777)
        # The victim is of the attackers' own user: nothing but the jail protects it.
        ordinary: dict[str, Any] = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        victim = subprocess.Popen(["sleep", "300"], **ordinary)
        victims = Victims(
            tcp.getsockname()[1],
            udp.getsockname()[1],
            f"\0k2rl-attack-{os.getpid()}",
            f"{folder}/s",
            f"{folder}/d",
            secret,
            victim.pid,
        )
        try:
            results = _run(sandbox, victims)
            results["after"]["the victim lives"] = "accepted" if victim.poll() is None else "killed"
        finally:
            victim.kill()
            victim.wait()
            sandbox.close()
    results["sandbox"] = {"level": sandbox.level, "restarts": str(sandbox.restarts), "uid": str(os.geteuid())}
    return results


def _run(sandbox: LocalSandbox, victims: Victims) -> dict[str, dict[str, str]]:
    def outcome(program: str, tests: tuple[ProgramTest, ...]) -> str:
        found = sandbox.run(program, tests, QUICK)
        return "accepted" if found.verdict.score == 1.0 else f"{found.verdict.status}: {found.verdict.detail}"

    stopped = (CallTest("attack", "()", "'stopped'"),)
    scratch = sandbox.level == "full"
    honest = HONEST | (HONEST_SCRATCH if scratch else {})
    results: dict[str, dict[str, str]] = {
        "escapes": {
            n: outcome(escape_program(s), stopped) for n, s in escapes(victims).items() if scratch or n not in ONLY_FULL
        },
        "greedy": {n: outcome(p, CALLS[:2]) for n, p in GREEDY.items()},
        "forgeries by calls": {n: outcome(p, CALLS) for n, p in FORGERIES.items()},
        "forgeries by scripts": {n: outcome(p, SCRIPTS) for n, p in FORGERIES.items()},
        "tricks": {n: outcome(p, (ScriptTest(test, ("f",)),)) for n, (p, test) in TRICKS.items()},
        "honest by stdin": {n: outcome(p, (StdioTest(STDIN, "7"),)) for n, p in HONEST_STDIO.items()},
        "honest by calls": {n: outcome(p, CALLS) for n, p in honest.items()},
        "honest by scripts": {n: outcome(p, SCRIPTS) for n, p in honest.items()},
        "mutation": {"empties its argument": outcome(FORGERIES["empties its argument"], MUTATION)},
        "file descriptors": {
            "calls": outcome(_FDS, (CallTest("fds", "()", "[0, 1, 2, 4]"),)),
            "scripts": outcome(_FDS, (ScriptTest("assert fds() == [0, 1, 2, 3, 4]"),)),
        },
    }
    started = time.monotonic()
    results["after"] = {"the broker serves": outcome(*CONTROL), "quickly": ""}
    results["after"]["quickly"] = "accepted" if time.monotonic() - started < 5 else "slow"
    return results


_FDS = """
import os
def fds():
    found = []
    for fd in range(64):
        try: os.fstat(fd)
        except OSError: continue
        found.append(fd)
    return found
"""

if __name__ == "__main__":
    print(json.dumps(run_all(sys.argv[1] if len(sys.argv) > 1 else "")))
