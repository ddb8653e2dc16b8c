"""What is installed here, and does it work: the checks behind `k2rl doctor` and `k2rl env list`.

The supported ranges come from the installed package's own metadata: they are stated once, in pyproject.toml.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from k2rl import assets

_NAME = "k2rl"


@dataclass(frozen=True)
class Check:
    """One line of the report. `optional`: not there, and nothing needs it yet, or it may just do; `broken`: it can't
    run."""

    what: str
    status: Literal["ok", "optional", "broken"]
    found: str
    fix: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> list[Check]:
    """All checks, what must work first."""
    return [*packages(), *_machine(), _device(), *_files(), _sandbox(), *_environments(), *_extras()]


def describe_envs() -> list[dict[str, str]]:
    """Name, target, first docstring line and source distribution of every installed environment.

    One that can't be imported is listed with the reason as its summary and in `error`.
    """
    rows = []
    for entry in sorted(metadata.entry_points(group="k2rl.envs"), key=lambda e: e.name):
        summary, error = "", ""
        try:
            lines = (entry.load().__doc__ or "").strip().splitlines()
            summary = lines[0] if lines else ""
        except Exception as problem:  # whatever a foreign module does on import, the others are still listed
            error = f"{type(problem).__name__}: {problem}"
        rows.append(
            {
                "name": entry.name,
                "target": entry.value,
                "summary": f"broken: {error}" if error else summary,
                "distribution": f"{entry.dist.name} {entry.dist.version}" if entry.dist else "",
                "error": error,
            }
        )
    return rows


def packages() -> Iterator[Check]:
    """k2rl, Python and what k2rl requires."""
    try:
        own = metadata.metadata(_NAME)
    except metadata.PackageNotFoundError:
        yield Check(_NAME, "broken", "not installed", "pip install -e . in the checkout")
        return
    yield Check(_NAME, "ok", own["Version"])
    python = platform.python_version()
    supported = SpecifierSet(own["Requires-Python"] or "")
    fits = supported.contains(python, prereleases=True)
    yield Check("python", "ok" if fits else "broken", python, "" if fits else f"use Python {supported}")
    for requirement in _requirements():
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _version_check(requirement)


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(_NAME) or []]


def _version_check(requirement: Requirement) -> Check:
    fix = f'pip install "{requirement.name}{requirement.specifier}"'
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Check(requirement.name, "broken", "missing", fix)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, "ok", version)
    return Check(requirement.name, "broken", f"{version}, supported {requirement.specifier}", fix)


def _machine() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("cores", "ok", str(cores))
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, OSError, ValueError):  # not every platform tells
        return
    yield Check("memory", "ok", f"{memory:.1f} GiB")


def _device() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        return Check("devices", "broken", f"torch does not import: {error}", "reinstall torch")
    names = ["cpu"]
    if torch.cuda.is_available():
        names += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return Check("devices", "ok", ", ".join(names))


def _files() -> Iterator[Check]:
    here = os.getcwd()
    writable = os.access(here, os.W_OK)
    yield Check(
        "current folder",
        "ok" if writable else "broken",
        "writable" if writable else "not writable",
        "" if writable else "change to a folder of yours, or give --run-dir and --out",
    )
    weights = assets.NANO / "model.safetensors"
    found = f"{weights.stat().st_size / 1e6:.1f} MB" if weights.is_file() else "missing"
    yield Check("nano model", *(("ok", found) if weights.is_file() else ("broken", found, "reinstall k2rl")))
    shipped = assets.recipes()
    yield Check("recipes", *(("ok", ", ".join(shipped)) if shipped else ("broken", "none", "reinstall k2rl")))


def _sandbox() -> Check:
    """The level at which programs that nobody trusts can be run here, found by attacking it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return Check(
            "sandbox", "optional", "none: jails need Linux on x86-64", "use one elsewhere: args.sandbox=http://…"
        )
    from k2rl.sandbox.local import report

    found = report()
    level = next((name for name, reason in found.items() if not reason), None)
    reasons = "; ".join(f"no {name}: {reason}" for name, reason in found.items() if reason)
    if level is None:
        fix = "allow user namespaces or Landlock, or use a sandbox elsewhere: args.sandbox=http://…"
        return Check("sandbox", "optional", f"none ({reasons})", fix)
    return Check("sandbox", "ok", f"{level} ({reasons or 'every probe stopped'})")


def _environments() -> Iterator[Check]:
    for row in describe_envs():
        status: Literal["ok", "broken"] = "broken" if row["error"] else "ok"
        fix = f"repair or remove {row['distribution']}" if row["error"] else ""
        yield Check(f"env {row['name']}", status, row["error"] or row["distribution"], fix)


def _extras() -> Iterator[Check]:
    """Each extra with the packages it lacks."""
    try:
        extras = metadata.metadata(_NAME).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return
    for extra in extras:
        wanted = [r for r in _requirements() if r.marker and not r.marker.evaluate({"extra": ""})]
        wanted = [r for r in wanted if r.name != _NAME and r.marker and r.marker.evaluate({"extra": extra})]
        missing = [r.name for r in wanted if _version_check(r).status != "ok"]
        if missing:
            yield Check(f"extra {extra}", "optional", f"lacks {', '.join(missing)}", f'pip install "k2rl[{extra}]"')
        else:
            yield Check(f"extra {extra}", "ok", ", ".join(r.name for r in wanted))
