"""The Linux calls a jail is made of, by ctypes: namespaces, mounts, capabilities, seccomp, Landlock.

x86-64 only: the numbers and the seccomp filter are this architecture's.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
CLONE_PIDFD, CLONE_THREAD, SIGCHLD = 0x00001000, 0x00010000, 17

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE, _RDONLY_NOSUID_NODEV = -100, 0x8000, 1 | 2 | 4

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38

_SYS_CLONE, _SYS_PIVOT_ROOT, _SYS_CAPSET, _SYS_MOUNT_SETATTR = 56, 155, 126, 442
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446

# PyDLL keeps the interpreter's lock: after a raw clone the child must not have to take it anew.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(number: int, *args: int | ctypes.Array[ctypes.c_char]) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return int(_libc.syscall(ctypes.c_long(number), *wide))


def unshare(flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind, data)]
    _check(_libc.mount(*texts[:3], ctypes.c_ulong(flags), texts[3]), f"mount {target}")


def make_read_only(target: str, recursive: bool) -> None:
    """Nothing on this mount, or on those below it too, can be changed, nor is it a device or setuid."""
    path = ctypes.create_string_buffer(os.fsencode(target))
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", _RDONLY_NOSUID_NODEV, 0, 0, 0), 32)
    flags = _AT_RECURSIVE if recursive else 0
    _check(_syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, path, flags, attributes, 32), f"mount_setattr {target}")


def detach(target: str) -> None:
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    paths = [ctypes.create_string_buffer(os.fsencode(p)) for p in (new, old)]
    _check(_syscall(_SYS_PIVOT_ROOT, *paths), "pivot_root")


def prctl(option: int, value: int, more: int = 0) -> None:
    _check(_libc.prctl(option, *(ctypes.c_ulong(v) for v in (value, more, 0, 0))), f"prctl {option}")


def clone(namespaces: int) -> tuple[int, int]:
    """Fork into new namespaces: (pid, pidfd) in the parent, (0, -1) in the child.

    For a process with a single thread: unlike `os.fork` it can make a child the first process of a pid namespace, and
    hands out a pidfd without a race.
    """
    pidfd = ctypes.c_int(-1)
    flags = namespaces | CLONE_PIDFD | SIGCHLD
    pid = int(_libc.syscall(ctypes.c_long(_SYS_CLONE), ctypes.c_ulong(flags), None, ctypes.byref(pidfd), None, None))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0, -1
    return _check(pid, "clone"), pidfd.value


def drop_capabilities() -> None:
    """Give up every capability, effective, permitted and inheritable."""
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0), 8)
    _check(_syscall(_SYS_CAPSET, header, ctypes.create_string_buffer(24)), "capset")


# Landlock ----------------------------------------------------------------------------------------------------------

READ_FILE, READ_DIR, WRITE_FILE = 1 << 2, 1 << 3, 1 << 1
# Files, folders, truncation: everything an ordinary program does with files, but no devices, sockets or links.
READ_WRITE = READ_FILE | READ_DIR | WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 14
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # file rights by ABI; from 5 on there are 16


def landlock_abi() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    return max(0, _syscall(_SYS_LANDLOCK_CREATE, 0, 0, 1))


def landlock_ruleset(rights: Iterable[tuple[str, int]]) -> int:
    """A ruleset's file descriptor: nothing is allowed but `rights` beneath these paths.

    Files (no execution either), TCP from ABI 4, signals and abstract sockets to the outside from ABI 6.
    """
    abi = landlock_abi()
    if abi < 1:
        raise OSError(95, "Landlock is not in this kernel")
    handled = (1 << _FS_BITS.get(abi, 16)) - 1
    attributes = struct.pack("QQQ", handled, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _check(
        _syscall(_SYS_LANDLOCK_CREATE, ctypes.create_string_buffer(attributes, 24), size, 0), "landlock_create_ruleset"
    )
    for path, allowed in rights:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed & handled, folder), 12)
        _check(_syscall(_SYS_LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(folder)
    return ruleset


def landlock_restrict(ruleset: int) -> None:
    _check(_syscall(_SYS_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")


# seccomp -----------------------------------------------------------------------------------------------------------

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_ARCH, _X32 = 0xC000003E, 0x40000000
_LOAD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06


@dataclass(frozen=True)
class ArgIs:
    """Argument `arg` must be one of `values` (below 2**32), in all its 64 bits: it may be an address."""

    arg: int
    values: tuple[int, ...]


@dataclass(frozen=True)
class ArgHas:
    """Argument `arg` must have this bit set."""

    arg: int
    bit: int


def seccomp_filter(
    allowed: Iterable[int], when: Iterable[tuple[int, ArgIs | ArgHas]], missing: Iterable[int]
) -> ctypes.Array[ctypes.c_char]:
    """A filter: `allowed` calls pass, `when` calls pass on a condition, `missing` ones look unknown to the kernel
    (ENOSYS), all others are refused (EPERM). Another architecture's calls kill."""
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),
        (_JEQ, 1, 0, _ARCH),
        (_RET, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_JGE, 0, 1, _X32),
        (_RET, 0, 0, _KILL),
    ]
    for number in allowed:
        code += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ALLOW)]
    for number in missing:
        code += [(_JEQ, 0, 1, number), (_RET, 0, 0, _ERRNO | 38)]
    for number, condition in when:
        low = 16 + 8 * condition.arg
        if isinstance(condition, ArgIs):
            tests = [(_JEQ, 0, 1, value) for value in condition.values]
            body = [(_LOAD, 0, 0, low + 4), (_JEQ, 1, 0, 0), (_RET, 0, 0, _ERRNO | 1)]
        else:
            tests = [(_JSET, 0, 1, condition.bit)]
            body = []
        body.append((_LOAD, 0, 0, low))
        for test in tests:
            body += [test, (_RET, 0, 0, _ALLOW)]
        body.append((_RET, 0, 0, _ERRNO | 1))
        code += [(_JEQ, 0, len(body), number), *body]
    code.append((_RET, 0, 0, _ERRNO | 1))
    packed = b"".join(struct.pack("HBBI", op, yes, no, value) for op, yes, no, value in code)
    return ctypes.create_string_buffer(packed, len(packed))


def seccomp_restrict(program: ctypes.Array[ctypes.c_char]) -> None:
    """Put the filter on this thread and what it starts; needs no_new_privs."""
    packed = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(program))
    header = ctypes.create_string_buffer(packed, 16)
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(header))


def close_from(first: int, keep: Sequence[int]) -> None:
    """Close every file descriptor from `first` on, but those to keep."""
    start = first
    for kept in sorted(keep):
        os.closerange(start, kept)
        start = kept + 1
    os.closerange(start, 1 << 16)
