"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from k2rl.types import SCHEMA_VERSION, Task

Result = Literal["passed", "failed", "waived", "skipped"]


@dataclass(frozen=True)
class Flaw:
    """What is wrong, in one line, and with which task (None: with all)."""

    evidence: str
    task: Task | None = None

    @property
    def where(self) -> str:
        """The task's id and the beginning of its prompt."""
        return "" if self.task is None else f"task {self.task.id} {short(self.task.messages[-1]['content'])}"

    def to_json(self) -> dict[str, Any]:
        return {"evidence": self.evidence, "task": None if self.task is None else self.task.to_json()}


@dataclass(frozen=True)
class Finding:
    """The result of one probe; `reason` says why it was waived or skipped."""

    probe: str
    meaning: str
    result: Result
    flaws: tuple[Flaw, ...] = ()
    reason: str = ""

    @property
    def note(self) -> str:
        """What a person should read beside the result."""
        if not self.flaws:
            return self.reason
        more = f" (and {len(self.flaws) - 1} more)" if len(self.flaws) > 1 else ""
        return "; ".join(filter(None, [self.flaws[0].evidence, self.flaws[0].where])) + more

    def to_json(self) -> dict[str, Any]:
        return {
            "probe": self.probe,
            "meaning": self.meaning,
            "result": self.result,
            "reason": self.reason,
            "flaws": [f.to_json() for f in self.flaws],
        }


@dataclass(frozen=True, repr=False)
class Report:
    """All findings on an environment. `assert report.ok, str(report)` shows what is wrong."""

    env: str
    findings: tuple[Finding, ...]
    tasks: int
    seed: int
    wall_s: float

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> list[str]:
        """The names of the failed probes."""
        return [f.probe for f in self.findings if f.result == "failed"]

    def __str__(self) -> str:
        shown = [f for f in self.findings if f.result != "passed"]
        return "\n".join([self.headline, *(f"  {f.result} {f.probe} ({f.meaning}): {f.note}" for f in shown)])

    __repr__ = __str__  # pytest shows the beginning of it where a report itself is the message

    @property
    def headline(self) -> str:
        kinds: tuple[Result, ...] = ("passed", "failed", "waived", "skipped")
        counts = {kind: sum(f.result == kind for f in self.findings) for kind in kinds}
        told = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n or kind in ("passed", "failed"))
        return f"{self.env}: {told} ({self.tasks} tasks, seed {self.seed}, {self.wall_s:.1f} s)"

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "env": self.env,
            "ok": self.ok,
            "failed": self.failed,
            "probes": [f.to_json() for f in self.findings],
            "tasks": self.tasks,
            "seed": self.seed,
            "wall_s": self.wall_s,
        }


def short(text: object, length: int = 60) -> str:
    """Text as it may be shown: quoted, escaped, and cut in the middle."""
    shown = repr(str(text)[: 2 * length])
    cut = len(str(text)) > 2 * length or len(shown) > length
    return f"{shown[: length - 3]}…{shown[0]}" if cut else shown
