"""The jail: what a zygote does once, and what each of its children does before it runs a program.

Levels:
    full: an empty root with the interpreter read-only; own user, mount, network, ipc and pid namespaces; per program a
        small scratch folder; no capabilities, Landlock, a seccomp allowlist, resource limits.
    landlock: where namespaces are denied; no writable folder at all. `stat` of foreign paths is not stopped, nor a
        program that starts threads by the thousand.
    unsafe: resource limits only. Never chosen by itself.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from k2rl.sandbox import syscalls as sc

NOBODY = 65534
SCRATCH_MB, SCRATCH_FILES = 16, 512
THREADS = 512  # of all programs in a zygote's namespace
_BOX = "/box"  # The scratch folder lies in it: Landlock looks past a mount point, so its rule must be on the parent.

# System calls by number on x86-64.
_ALLOWED = (
    *(0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25),  # files, memory, signals
    *(28, 32, 33, 34, 35, 36, 37, 38, 39),  # madvise, dup, sleep, timers, getpid
    *(48, 60, 63, 73, 74, 75, 77, 78, 79, 80, 82, 83, 84, 87, 89, 95, 96, 97, 98, 99, 100, 102),
    *(104, 107, 108, 110, 111, 127, 128, 131, 186, 201, 202, 204, 213, 217, 218, 221, 228, 229, 230, 231, 232, 233),
    *(257, 258, 262, 263, 264, 267, 269, 270, 271, 273, 274, 281, 285, 290, 291, 292, 293, 316),
    *(318, 324, 332, 334, 439, 441, 449),
)
# open, stat and friends are above; unshared: socket, connect, execve, fork, ptrace, kill, symlink, link, mount, …
_OWNERS = (76, 90, 91, 268, 280)  # truncate, chmod, utime: Landlock does not (always) see them, the owner may do them
_MISSING = (435,)  # clone3: the C library falls back to clone
_FCNTLS = (*range(8), 36, 37, 38, 1030, 1032)  # dup, flags, locks, size of a pipe; no signals to others, no leases
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # is it a terminal, its size, FIONREAD, FIONBIO, (N)CLOEXEC
_AF_UNIX = 1


@dataclass(frozen=True)
class Caps:
    """What one child may use."""

    cpu_s: float
    memory_mb: int


class Jail:
    """A level, prepared once in the zygote (`enter`), put on each child (`confine`)."""

    def __init__(self, level: str) -> None:
        self.level = level
        self.namespaces = sc.CLONE_NEWPID | sc.CLONE_NEWNS | sc.CLONE_NEWIPC if level == "full" else 0
        self._ruleset = -1
        self._filter = _filter(level, 1)  # made once: at level full every program is process 1 of its namespace

    def enter(self) -> None:
        """Give up root and, at level full, the file system. The caller becomes the first process of a pid namespace.

        Raises:
            OSError: this machine denies one of the steps.
        """
        if self.level == "unsafe":
            return
        places = _readable_places()
        if self.level == "full":
            _enter_namespaces(places)
        else:
            _become_ordinary()
        ruleset = sc.landlock_ruleset(self._rights(places))
        self._ruleset = fcntl.fcntl(ruleset, fcntl.F_DUPFD, 24)  # above what a child is handed
        os.close(ruleset)

    def close_others(self, first: int) -> None:
        """Close the file descriptors from `first` on that are not the jail's own."""
        sc.close_from(first, [fd for fd in [self._ruleset] if fd >= first])

    def confine(self, caps: Caps) -> None:
        """In the child: the limits, then the jail, then nothing more can be undone."""
        sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
        if self.level == "full":
            options = f"size={SCRATCH_MB}m,nr_inodes={SCRATCH_FILES},mode=700"
            sc.mount("scratch", f"{_BOX}/tmp", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC, options)
            os.chdir("/tmp")
        memory = caps.memory_mb << 20
        cpu = max(1, -int(-caps.cpu_s // 1))
        for kind, limit in (
            (resource.RLIMIT_CPU, cpu),  # the first process of a pid namespace ignores SIGXCPU: the hard limit kills
            (resource.RLIMIT_AS, memory),
            (resource.RLIMIT_FSIZE, SCRATCH_MB << 20),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_MSGQUEUE, 0),
            (resource.RLIMIT_MEMLOCK, 0),
            # Counted per user and namespace: without one of its own it would count all that the user runs.
            *([(resource.RLIMIT_NPROC, THREADS)] if self.level == "full" else []),
        ):
            resource.setrlimit(kind, (limit, limit))
        if self.level == "unsafe":
            return
        sc.drop_capabilities()
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
        sc.landlock_restrict(self._ruleset)
        os.close(self._ruleset)
        sc.seccomp_restrict(self._filter if os.getpid() == 1 else _filter(self.level, os.getpid()))

    def _rights(self, places: dict[str, str]) -> list[tuple[str, int]]:
        rights = [right for path in places for right in _reading(path, _packages(places))]
        rights += [(f"/dev/{name}", sc.READ_FILE | (sc.WRITE_FILE if name == "null" else 0)) for name in _DEVICES]
        return [*rights, (_BOX, sc.READ_WRITE)] if self.level == "full" else rights


_DEVICES = ("null", "zero", "urandom")


def _readable_places() -> dict[str, str]:
    """The folders a program may read, each mapped to where it is found: libraries, the standard one, time zones."""
    places = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo")
    wanted = [p for p in places if os.path.isdir(p)]
    wanted += [p for p in ("/lib", "/lib64") if os.path.isdir(p) and not os.path.islink(p)]
    for key in ("stdlib", "platstdlib"):
        path = os.path.dirname(os.path.realpath(sysconfig.get_path(key)))  # libraries it needs may lie beside it
        if not any(path == w or path.startswith(w + "/") for w in wanted):
            wanted.append(path)
    return {path: path for path in wanted}


def _packages(places: dict[str, str]) -> frozenset[str]:
    """Folders of installed packages: among them may be the one that holds the answers."""
    return frozenset(str(found) for place in places for found in Path(place).glob("python*/*-packages"))


def _reading(path: str, hidden: frozenset[str]) -> Iterator[tuple[str, int]]:
    """Landlock's rules that let a program read what is in `path` and not hidden (of that, it may see the names)."""
    if not any(h.startswith(f"{path}/") for h in hidden):
        yield path, sc.READ_FILE | (sc.READ_DIR if os.path.isdir(path) else 0)
        return
    yield path, sc.READ_DIR
    for entry in os.scandir(path):
        if entry.path not in hidden and not entry.is_symlink():
            yield from _reading(entry.path, hidden)


def _mount_point(places: dict[str, str]) -> str:
    """An existing folder that the new root may cover."""
    for path in ("/mnt", "/media", "/srv", "/opt", "/tmp"):
        if os.path.isdir(path) and not any(place.startswith(path + "/") for place in places):
            return path
    raise OSError(2, "no folder to mount the jail's root on: /mnt, /media, /srv, /opt, /tmp")


def _become_ordinary() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        sc.prctl(sc.PR_SET_DUMPABLE, 1)  # or /proc/self would stay root's


def _enter_namespaces(places: dict[str, str]) -> None:
    """An empty root that shows `places` read-only, in new namespaces, as an ordinary user."""
    places = dict(places)
    stage = _mount_point(places)
    root = stage
    if os.geteuid() == 0:
        # The interpreter may lie where only root gets through: its folders are made reachable first.
        sc.unshare(sc.CLONE_NEWNS)
        sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
        sc.mount("stage", stage, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=755")
        for number, path in enumerate(places):
            os.mkdir(f"{stage}/{number}")
            sc.mount(path, f"{stage}/{number}", None, sc.MS_BIND | sc.MS_REC)
            places[path] = f"{stage}/{number}"
        root = f"{stage}/root"
        os.mkdir(root)
        _become_ordinary()
    user, group = os.geteuid(), os.getegid()
    sc.unshare(
        sc.CLONE_NEWUSER | sc.CLONE_NEWNS | sc.CLONE_NEWNET | sc.CLONE_NEWIPC | sc.CLONE_NEWUTS | sc.CLONE_NEWPID
    )
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    sc.mount(None, "/", None, sc.MS_REC | sc.MS_PRIVATE)
    _build_root(root, places)
    os.chdir(root)
    sc.pivot_root(".", ".")  # the old root now lies over the new one
    sc.detach(".")
    os.chdir("/")


def _build_root(root: str, places: dict[str, str]) -> None:
    sc.mount("root", root, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=755,size=1m")
    for path, source in places.items():
        os.makedirs(root + path)
        sc.mount(source, root + path, None, sc.MS_BIND | sc.MS_REC)
        sc.make_read_only(root + path, recursive=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
    os.mkdir(f"{root}/dev")
    for name in _DEVICES:
        Path(f"{root}/dev/{name}").touch()
        sc.mount(f"/dev/{name}", f"{root}/dev/{name}", None, sc.MS_BIND)
    os.makedirs(f"{root}{_BOX}/tmp")
    os.symlink(f"{_BOX[1:]}/tmp", f"{root}/tmp")
    sc.make_read_only(root, recursive=False)  # devices would be none


def _filter(level: str, own_pid: int) -> ctypes.Array[ctypes.c_char]:
    """The allowlist; the few calls that depend on an argument are those Python's own library makes."""
    return sc.seccomp_filter(
        _ALLOWED + (_OWNERS if level == "full" else ()),
        (
            (16, sc.ArgIs(1, _IOCTLS)),  # ioctl
            (72, sc.ArgIs(1, _FCNTLS)),  # fcntl
            (302, sc.ArgIs(0, (0,))),  # prlimit64: its own
            (53, sc.ArgIs(0, (_AF_UNIX,))),  # socketpair: asyncio wakes itself through one
            (44, sc.ArgIs(4, (0,))),  # sendto and recvfrom without an address: on that pair
            (45, sc.ArgIs(4, (0,))),
            (56, sc.ArgHas(0, sc.CLONE_THREAD)),  # clone: threads, no processes
            (234, sc.ArgIs(0, (own_pid,))),  # tgkill: abort() and the like
        ),
        _MISSING,
    )
