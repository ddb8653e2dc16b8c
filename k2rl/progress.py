"""Progress a person understands: a bar on a terminal, a line now and then elsewhere, nothing when quiet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
_LINE_EVERY_S = 15.0


@contextmanager
def bar(title: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; call what it yields with (done, total)."""
    with live(title, quiet) as update:
        yield lambda done, total: update(done, total, "")


@contextmanager
def live(title: str, quiet: bool) -> Iterator[Callable[[float, float, str], None]]:
    """As `bar`, with a text beside the count that says how things stand."""
    if quiet:
        yield lambda done, total, text: None
        return
    if not console.is_terminal:
        last = time.monotonic()

        def line(done: float, total: float, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_EVERY_S or (text and done >= total):
                last = time.monotonic()
                console.print(f"{title} {done:g}/{total:g} {text}", markup=False, soft_wrap=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}", markup=False),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        job = progress.add_task(title, total=None, text="")
        yield lambda done, total, text: progress.update(job, completed=done, total=total, text=text)
