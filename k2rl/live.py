"""What a training run does, while it does it: on a terminal a screen that is redrawn in place, elsewhere a line now and
then, nothing when quiet.

The loop hands over an iteration's metrics; rich's own thread draws. All but a clock is laid out once an iteration.
"""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.text import Text

from k2rl import budget, progress
from k2rl.critic.critic import Ranked
from k2rl.progress import console
from k2rl.terminal import shown
from k2rl.types import FAILURES, mean

if TYPE_CHECKING:
    from k2rl.loop import Run

Show = Callable[[Mapping[str, float], Ranked], None]

PHASES = ("rollout", "judge", "score", "train", "critic", "sync")
_CRITICS = ("judge", "critic")
_PER_SECOND = 2
_LEAST_SPAN = 0.1
"""What the height of a sparkline stands for at least: a curve that hardly moves shall not look as if it did."""
_PACE = 20
"""Iterations whose mean length says how long the rest takes, or more: two evaluations are among them."""
_LEVELS, _ASCII_LEVELS = "▁▂▃▄▅▆▇█", ".:-=+*#@"
_NUMBER, _PERCENT = "{:.2f}", "{:.0%}"
_VALUE, _TOKENS, _HELD_OUT = 5, 9, 9
_LEAST_NAME, _LEAST_SPARK, _MOST_SPARK = 8, 4, 60


@contextmanager
def training(run: Run, folder: Path, before: Mapping[str, Mapping[str, Any]], quiet: bool) -> Iterator[Show]:
    """Show a run's iterations: call what it yields with the metrics of each and what its critic said.

    Args:
        folder: the run's; the curves begin with what its `metrics.jsonl` has.
        before: held-out results before training, by env.
    """
    recipe, envs = run.recipe, list(run.parts.curriculum.pools)
    if quiet or not (console.is_interactive and console.file.isatty()):
        with progress.live("training", quiet) as show:
            yield lambda metrics, ranked: show(metrics["iteration"], recipe.run.iterations, line(metrics, envs, ranked))
        return
    view = View(
        {name: _limit(run, name) for name in envs},
        recipe.run.iterations,
        before={name: r["pass@1"] for name, r in before.items() if r["pass@1"] is not None},
        phases=PHASES if recipe.critic.enabled else [p for p in PHASES if p not in _CRITICS],
        pace=max(_PACE, 2 * recipe.run.eval_every),
        alarms=run.alarms,
        phase=lambda: run.phase,
    )
    if (metrics_file := folder / "metrics.jsonl").exists():
        for row in metrics_file.read_text(encoding="utf-8").splitlines():
            view.earlier(json.loads(row))
    # What is printed meanwhile goes above the screen, or to the file that it is meant for.
    with Live(view, console=console, refresh_per_second=_PER_SECOND, redirect_stdout=sys.stdout.isatty()):
        console.show_cursor(True)  # So that a terminal has one after a run that was killed.
        yield lambda metrics, ranked: view.add(metrics, ranked.closed)


def _limit(run: Run, env: str) -> float:
    """The tokens that a response may use, on average over the environment's tasks."""
    parts = run.parts
    config, default = run.recipe.envs[env].budget, parts.envs.templates[env].budget
    return mean([float(budget.limit(t, config, default, parts.driver.estimates)) for t in parts.curriculum.pools[env]])


def line(metrics: Mapping[str, float], envs: Sequence[str], ranked: Ranked) -> str:
    """What a person wants to see of an iteration where there is room for no more than a line."""
    parts = [
        f"{name}: {100 * metrics[f'success/{name}']:.0f} % right, {metrics[f'tokens/{name}']:.0f} tokens"
        for name in envs
        if f"success/{name}" in metrics
    ]
    for name, weight in ranked.weights.items():
        accuracy = metrics.get(_accuracy(name))
        judge = "judge not measured" if accuracy is None else f"judge {100 * accuracy:.0f} % right"
        why = f" ({ranked.closed[name].replace('_', ' ')})" if name in ranked.closed else ""
        parts.append(f"{name}: {judge}, weight {weight:.2f}{why}")
    if unreadable := metrics.get("critic/unreadable"):
        parts.append(f"{unreadable:.0f} of {metrics['critic/judgements']:.0f} verdicts unreadable")
    errors = int(sum(metrics[f"errors/{status}"] for status in FAILURES))
    return "  ".join([*parts, f"{metrics['perf/tokens_per_s']:.0f} tok/s", *([f"{errors} errors"] if errors else [])])


class View:
    """The screen of a run, as wide as the terminal and lower than it.

    `add` and the drawing may happen on different threads.

    Args:
        limits: per env, in the order to be shown in, the tokens that a response may use.
        total: the run's iterations.
        before: held-out pass@1 before training, by env.
        phases: of an iteration; each is timed as `time/<phase>`.
        pace: iterations behind the estimate of the time left.
        alarms: what the critic raised so far; read, never written.
        phase: which phase the iteration under way is in; "" between them.
        clock: seconds, for the times shown.
    """

    def __init__(
        self,
        limits: Mapping[str, float],
        total: int,
        *,
        before: Mapping[str, float] | None = None,
        phases: Sequence[str] = PHASES,
        pace: int = _PACE,
        alarms: Sequence[str] = (),
        phase: Callable[[], str] = lambda: "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits, self.total, self.before, self.phases = limits, total, before or {}, phases
        self.alarms, self.phase, self.clock = alarms, phase, clock
        self.latest: Mapping[str, float] = {}
        self.curves: dict[str, list[float]] = {}
        self.errors: Counter[str] = Counter()
        self.held_out: dict[str, float] = {}
        self.closed: Mapping[str, str] = {}
        self._lengths: deque[float] = deque(maxlen=pace)
        self._began = self._since = clock()
        self._lock = threading.Lock()
        self._drawn: tuple[object, list[list[Segment]]] = (None, [])

    def add(self, metrics: Mapping[str, float], closed: Mapping[str, str]) -> None:
        """An iteration is over. `closed`: why the gate of an env is, where it is."""
        with self._lock:
            now, since = self.clock(), self._since
            self._since, self.closed = now, closed
            self._take(metrics, now - since)

    def earlier(self, metrics: Mapping[str, float]) -> None:
        """An iteration of before this process."""
        self._take(metrics, metrics["time/iteration"])

    def _take(self, metrics: Mapping[str, float], seconds: float) -> None:
        self.latest = metrics
        self._lengths.append(seconds)
        self.errors.update(_errors(metrics))
        for env in self.limits:
            for key in (f"reward/{env}", f"success/{env}", _accuracy(env), _weight(env)):
                if math.isfinite(value := metrics.get(key, math.nan)):
                    self.curves.setdefault(key, []).append(value)
            if (result := metrics.get(f"eval/{env}/pass@1")) is not None:
                self.held_out[env] = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            layout = self._layout(options.max_width, options.size.height, options.ascii_only)
            state = (layout, self.latest.get("iteration"), len(self.alarms))
            if self._drawn[0] != state:
                self._drawn = state, [_rendered(console, options, part) for part in self._parts(layout)]
            header, phases, (above, below) = self._header(layout), self._phases(layout), self._drawn[1]
        yield header
        yield from above
        yield phases
        yield from below

    def _header(self, layout: _Layout) -> Text:
        """How far the run is, and how long that took."""
        done = int(self.latest.get("iteration", 0))
        said, times = f"iteration {done} of {self.total}", f"{_clock(self.clock() - self._began)}{self._left(done)}"
        room = max(0, layout.width - len(said) - len(times) - 4)
        full = room * done // max(self.total, 1)
        over, rest = "=-" if layout.ascii_only else "━─"
        bar = Text.assemble((over * full, "cyan"), (rest * (room - full), "dim"))
        return layout.line(Text(said, "bold"), bar, Text(times))

    def _left(self, done: int) -> str:
        """What the rest takes at the pace of late; it runs down while an iteration is under way."""
        if not self._lengths or done >= self.total:
            return ""
        pace = mean(list(self._lengths))
        return f", about {_long(pace * (self.total - done) - min(self.clock() - self._since, pace))} left"

    def _layout(self, width: int, height: int, ascii_only: bool) -> _Layout:
        longest = max([_LEAST_NAME, *(cell_len(shown(env)) for env in self.limits)])
        name = min(longest, max(_LEAST_NAME, width // 5))
        evaluated = bool(self.before or self.held_out)
        fixed = name + 2 * (2 + 1 + _VALUE) + 2 + _TOKENS + (2 + _HELD_OUT) * evaluated
        spark = min(max(_LEAST_SPARK, (width - fixed) // 2), _MOST_SPARK)
        return _Layout(width, height, ascii_only, name, spark, evaluated)

    def _parts(self, layout: _Layout) -> tuple[list[Text], list[Text]]:
        """What changes once an iteration: above the phases' names and below. One of the terminal's lines is left free,
        for what is printed above the screen."""
        below = [self._times(layout), *self._problems(layout)]
        judged = [env for env in self.limits if _weight(env) in self.curves]
        room = layout.height - 6 - len(below) - (2 if judged else 0)
        most = max(1, room // 3)
        judges = _kept(judged, most, lambda env: float(env in self.closed))
        envs = _kept(list(self.limits), max(1, room - min(most, len(judged))), self._moved)
        titles = layout.env(Text("env"), Text("reward"), Text("success"), "tokens", "held out", "dim")
        above = [Text(), titles, *self._envs(layout, envs)]
        if judged:
            above += [Text(), layout.row(*map(Text, ("judge", "accuracy", "trust weight", "gate")), style="dim")]
            above += [self._judge(layout, env) for env in judges] + layout.more(len(judged) - len(judges))
        return [*above, Text()], below

    def _moved(self, env: str) -> float:
        """How much an environment's curve has moved so far: what hardly does is folded first."""
        curve = _means(self.curves.get(f"success/{env}") or self.curves.get(f"reward/{env}", []), 8)
        return max(curve) - min(curve) if curve else 0.0

    def _envs(self, layout: _Layout, envs: Sequence[str]) -> list[Text]:
        rest = [env for env in self.limits if env not in envs]
        means = [self._mean(rest, key, form) for key, form in (("reward", _NUMBER), ("success", _PERCENT))]
        return [self._env(layout, env) for env in envs] + layout.more(len(rest), *means)

    def _mean(self, envs: Sequence[str], key: str, form: str) -> str:
        values = [curve[-1] for env in envs if (curve := self.curves.get(f"{key}/{env}"))]
        return f"mean {form.format(mean(values))}" if values else ""

    def _env(self, layout: _Layout, env: str) -> Text:
        used, pair = self.latest.get(f"tokens/{env}"), (self.before.get(env), self.held_out.get(env))
        tokens = f"{'-' if used is None else _count(used)}/{_count(self.limits[env])}"
        held_out = layout.arrow.join(f"{100 * x:.0f}" for x in pair if x is not None)
        return layout.env(
            Text(shown(env), "bold"),
            layout.curve(self.curves.get(f"reward/{env}", []), _NUMBER),
            layout.curve(self.curves.get(f"success/{env}", []), _PERCENT),
            tokens,
            f"{held_out} %" if held_out else "",
        )

    def _judge(self, layout: _Layout, env: str) -> Text:
        accuracy, weight, reason = (
            self.curves.get(_accuracy(env), []),
            self.curves[_weight(env)],
            self.closed.get(env, "closed"),
        )
        return layout.row(
            Text(shown(env), "bold"),
            layout.curve(accuracy, _PERCENT) if accuracy else Text("not measured", "dim"),
            layout.curve(weight, _NUMBER),
            Text("open") if weight[-1] else Text(shown(reason).replace("_", " "), "yellow"),
        )

    def _phases(self, layout: _Layout) -> Text:
        """The one under way stands out."""
        now = self.phase()
        room = self._room(layout)
        names = [Text(f"{name:>{room}}", "bold cyan" if name == now else "dim") for name in self.phases]
        return layout.line(Text(f"{'phase':{_LEAST_NAME}}", "dim"), *names)

    def _times(self, layout: _Layout) -> Text:
        """Where the last iteration's time went."""
        total, room = self.latest.get("time/iteration", 0.0), self._room(layout)
        took = [self.latest.get(f"time/{name}") for name in self.phases]
        said = ["" if s is None or not total else f"{_short(s)} {100 * s / total:.0f}%" for s in took]
        return layout.line(Text(f"{'took':{_LEAST_NAME}}", "dim"), *(Text(f"{text:>{room}}") for text in said))

    def _room(self, layout: _Layout) -> int:
        """Characters of a phase's column."""
        return min(12, (layout.width - _LEAST_NAME) // len(self.phases) - 2)

    def _problems(self, layout: _Layout) -> list[Text]:
        """How fast the last iteration was, what failed in it and in all, and the newest alarm."""
        if (speed := self.latest.get("perf/tokens_per_s")) is None:
            return []
        now = _errors(self.latest)
        failed = [f"{kind} {now[kind]} ({n} so far)" for kind, n in self.errors.items()]
        said = [Text(f"{speed:,.0f} tokens/s"), Text(f"iteration {_short(self.latest['time/iteration'])}")]
        errors = Text(", ".join(failed) or "none", "red" if now else "yellow" if failed else "")
        lines = [layout.line(Text(f"{'speed':{_LEAST_NAME}}", "dim"), *said)]
        lines.append(layout.line(Text(f"{'errors':{_LEAST_NAME}}", "dim"), errors))
        if self.alarms:
            title = f"{len(self.alarms)} alarms, the last: " if len(self.alarms) > 1 else "alarm: "
            lines.append(layout.line(Text(title + shown(self.alarms[-1]), "bold red")))
        return lines


@dataclass(frozen=True)
class _Layout:
    """Columns that fit a terminal of `width` x `height` characters: a name, two curves with their last value, tokens,
    held-out results."""

    width: int
    height: int
    ascii_only: bool
    name: int
    spark: int
    evaluated: bool

    @property
    def arrow(self) -> str:
        return ">" if self.ascii_only else "→"

    def line(self, *parts: Text) -> Text:
        """Parts side by side, cut at the width."""
        found = Text("  ").join(parts)
        found.no_wrap = True
        found.truncate(self.width, overflow="crop" if self.ascii_only else "ellipsis")
        return found

    def row(self, *cells: Text, style: str = "") -> Text:
        """Cells in their columns; the last takes what room there is."""
        widths = (self.name, self.spark + 1 + _VALUE, self.spark + 1 + _VALUE, _TOKENS)
        for cell, width in zip(cells[:-1], widths, strict=False):
            cell.truncate(width, overflow="crop" if self.ascii_only else "ellipsis", pad=True)
        row = self.line(*cells)
        row.stylize(style)
        return row

    def env(self, name: Text, reward: Text, success: Text, tokens: str, held_out: str, style: str = "") -> Text:
        cells = [name, reward, success, Text(f"{tokens:>{_TOKENS}}"), Text(f"{held_out:>{_HELD_OUT}}")]
        return self.row(*cells[: 5 if self.evaluated else 4], style=style)

    def curve(self, values: Sequence[float], form: str) -> Text:
        """A sparkline over all iterations, and the last value; nothing where there are none."""
        if not values:
            return Text()
        levels = _ASCII_LEVELS if self.ascii_only else _LEVELS
        drawn = sparkline(values, self.spark, levels)
        return Text.assemble((f"{drawn:{self.spark}}", "cyan"), f" {form.format(values[-1]):>{_VALUE}}")

    def more(self, count: int, *cells: str) -> list[Text]:
        """A line for what there is no room for."""
        return [self.row(*(Text(cell, "dim") for cell in (f"+ {count} more", *cells)))] if count else []


def _rendered(console: Console, options: ConsoleOptions, lines: Sequence[Text]) -> list[Segment]:
    """Lines as they go to the terminal, to be written again and again."""
    found = console.render_lines(Group(*lines), options, pad=False)
    return [segment for line in found for segment in (*line, Segment.line())]


def sparkline(values: Sequence[float], width: int, levels: str = _LEVELS) -> str:
    """A curve in at most `width` characters from its lowest to its highest value; of more values than that, means."""
    curve = _means(values, width)
    low, high = min(curve), max(curve)
    span = max(high - low, _LEAST_SPAN)
    bottom = (low + high - span) / 2
    # A hair above, for sums that are not exact: the middle is in the upper half.
    return "".join(levels[min(int((x - bottom) / span * len(levels) + 1e-6), len(levels) - 1)] for x in curve)


def _means(values: Sequence[float], count: int) -> list[float]:
    """Means of at most `count` consecutive parts of equal size."""
    n = min(count, len(values))
    return [mean(values[i * len(values) // n : (i + 1) * len(values) // n]) for i in range(n)]


def _kept(names: Sequence[str], most: int, interest: Callable[[str], float]) -> list[str]:
    """All names if there are no more than `most`, else the most interesting, in their order; a line is left for the
    others."""
    if len(names) <= most:
        return list(names)
    best = set(sorted(names, key=interest, reverse=True)[: most - 1])
    return [name for name in names if name in best]


def _accuracy(env: str) -> str:
    """The key of what a gate mostly hangs on."""
    return f"critic/accuracy/{env}/degradation"


def _weight(env: str) -> str:
    return f"critic/weight/{env}"


def _errors(metrics: Mapping[str, float]) -> Counter[str]:
    """What went wrong in an iteration, by kind; calls that were slow together, whosever they were."""
    found: Counter[str] = Counter()
    for key, n in metrics.items():
        if key.startswith("errors/") and n:
            found[key.split("/")[1].replace("_", " ")] += int(n)
    if unreadable := metrics.get("critic/unreadable"):
        found["unreadable judgements"] = int(unreadable)
    return found


def _count(tokens: float) -> str:
    return f"{tokens:.0f}" if tokens < 9999.5 else f"{tokens / 1000:.0f}k"


def _short(seconds: float) -> str:
    """A duration in at most six characters."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def _long(seconds: float) -> str:
    """A duration as precise as an estimate of it can be."""
    if seconds < 90:
        return f"{max(5, 5 * round(seconds / 5))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
