"""The screen of a training run: what it shows, that it fits, and that a terminal is whole after it.

1. A small screen, exactly.
2. Hostile names and reasons are shown as text, and no line is wider than the terminal.
3. Twenty environments fit 24 lines: those whose curves move most are shown, the others counted.
4. A run without a critic has none of its lines; one before its first iteration has no figures.
5. A resumed run's curves begin with what `metrics.jsonl` has.
6. Not a terminal: plain lines. Quiet: nothing.
7. On a terminal it is redrawn in place, what is printed meanwhile stands above it, and an error leaves it whole.
"""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from k2rl import live, progress
from k2rl.critic.critic import Ranked
from k2rl.live import PHASES, View, line, sparkline
from k2rl.types import FAILURES

WITHOUT_CRITIC = [phase for phase in PHASES if phase not in ("judge", "critic")]


def metrics(iteration: int, envs: Mapping[str, float], **more: float) -> dict[str, float]:
    """An iteration's, with these success rates. In `more`, `__` stands for `/`."""
    found: dict[str, float] = {"iteration": iteration, "time/iteration": 8.0, "perf/tokens_per_s": 1234.4}
    for name, success in envs.items():
        found |= {f"reward/{name}": success - 0.1, f"success/{name}": success, f"tokens/{name}": 28.6}
    found |= {f"time/{phase}": 2.0 for phase in WITHOUT_CRITIC} | {f"errors/{status}": 0.0 for status in FAILURES}
    return found | {key.replace("__", "/"): value for key, value in more.items()}


def screen(view: View, width: int = 80, height: int = 24, encoding: str = "utf-8") -> list[str]:
    """What it draws on a terminal of that size, line by line."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    console = Console(
        width=width, height=height, file=file, force_terminal=True, color_system=None, legacy_windows=False
    )
    console.print(view)
    file.flush()
    assert isinstance(file.buffer, io.BytesIO)
    lines = file.buffer.getvalue().decode(encoding).split("\n")
    assert lines.pop() == ""
    assert len(lines) < height
    assert all(cell_len(text) <= width for text in lines)
    return [text.rstrip() for text in lines]


def test_1_a_small_screen() -> None:
    now = iter([0.0, 10.0, 19.0, 28.0, 30.0, 30.0])
    view = View({"math": 48, "writing": 4096}, 12, before={"math": 0.2}, clock=lambda: next(now))
    judged = {"critic__weight__writing": 0.0, "reward__writing": 0.5, "tokens__writing": 1200.0}
    view.add(metrics(1, {"math": 0.2}, **judged), {"writing": "too_few_pairs"})
    view.add(metrics(2, {"math": 0.4}, errors__timeout=2.0, **judged), {"writing": "too_few_pairs"})
    judged |= {"critic__weight__writing": 0.55, "critic__accuracy__writing__degradation": 0.71}
    more = {"eval__math__pass@1": 0.31, "errors__slow_calls__math": 1.0, "errors__timeout": 1.0}
    view.add(metrics(3, {"math": 0.6}, time__judge=0.4, time__critic=4.0, **more, **judged), {})
    assert screen(view) == [
        "iteration 3 of 12  ━━━━━━━━───────────────────────────  0:00:30, about 80 s left",
        "",
        "env       reward                   success                     tokens   held out",
        "math      ▁▅█                0.50  ▁▅█                 60%      29/48    20→31 %",
        "writing   ▅▅▅                0.50                           1200/4096",
        "",
        "judge     accuracy                 trust weight             gate",
        "writing   ▅                   71%  ▁▁█                0.55  open",
        "",
        "phase        rollout       judge       score       train      critic        sync",
        "took       2.0 s 25%    0.4 s 5%   2.0 s 25%   2.0 s 25%   4.0 s 50%   2.0 s 25%",
        "speed     1,234 tokens/s  iteration 8.0 s",
        "errors    timeout 1 (3 so far), slow calls 1 (1 so far)",
    ]


def test_2_hostile_names() -> None:
    names = [
        "[red]x[/red]",
        "\x1b[2J\x1b]0;t\x07",
        "a\nb\tc",
        "\ud800",
        "\u202eabc",
        "日本語の環境の名前です",
        "n" * 400,
        "\u0301",
    ]
    view = View(dict.fromkeys(names, 1e7), 3, before={names[0]: 0.5}, alarms=["[bold]a\x1b[31m\nb"])
    for iteration in (1, 2):
        reasons = dict.fromkeys(names, "a\x1b[0m[red]reason\n" * 9)
        weights = {f"critic/weight/{name}": 0.0 for name in names}
        view.add(metrics(iteration, dict.fromkeys(names, 1.0)) | weights, reasons)
    for width, height in ((80, 24), (40, 24), (200, 60)):
        lines = screen(view, width, height)
        assert not [c for text in lines for c in text if not c.isprintable()]
    assert any(text.startswith("[red]x[/red] ") for text in lines)
    assert any(text.startswith(r"\x1b[2J\x1b]0;t\x07") for text in lines)
    assert any(text.startswith(r"a\nb\tc ") for text in lines)
    assert r"alarm: [bold]a\x1b[31m\nb" in lines


def test_3_many_envs_fit() -> None:
    names = [f"environment_{n:02}" for n in range(20)]
    view = View(dict.fromkeys(names, 100), 9)
    for iteration in (1, 2, 3):
        judged = {f"critic/weight/{name}": float(name != names[4]) for name in names[:5]}
        moves = {name: 0.5 + 0.01 * n * iteration for n, name in enumerate(names)}
        view.add(metrics(iteration, moves) | judged, {names[4]: "too_few_pairs"})
    lines = screen(view)
    assert len(lines) == 23
    envs = [text.split()[0] for text in lines if text.startswith("environment")]
    shown_judges = envs[-3:]
    assert shown_judges == [names[0], names[1], names[4]], "the one whose gate is closed is among them"
    shown_envs = envs[:-3]
    assert shown_envs == names[-len(shown_envs) :]
    rest = [text for text in lines if text.startswith("+ ")]
    assert rest[0].startswith(f"+ {20 - len(shown_envs)} more")
    assert "mean 0.57" in rest[0]
    assert rest[1] == "+ 2 more"
    assert len([text for text in screen(view, height=60) if text.startswith("environment")]) == 25
    assert len(screen(view, 30, 14)) <= 13


def test_4_no_critic_and_no_iteration() -> None:
    view = View({"math": 48}, 5, phases=WITHOUT_CRITIC, phase=lambda: "rollout", clock=lambda: 0.0)
    assert screen(view)[3:] == [
        "math                                                                       -/48",
        "",
        "phase          rollout         score         train          sync",
        "took",
    ]
    assert screen(view)[0].startswith("iteration 0 of 5  ─")
    view.add(metrics(1, {"math": 0.0}), {})
    assert not [text for text in screen(view) if "judge" in text or "critic" in text or "held out" in text]


def test_4_what_is_not_ascii_on_a_terminal_that_is() -> None:
    view = View({"math": 48}, 2, before={"math": 0.1})
    view.add(metrics(1, {"math": 0.3}, eval__math__pass=0.0) | {"eval/math/pass@1": 0.2}, {})
    lines = screen(view, encoding="ascii")
    assert "=" in lines[0]
    assert lines[3].endswith("10>20 %")
    assert all(text.isascii() for text in lines)


def test_the_time_left_is_steady() -> None:
    seconds = 0.0
    view = View({"m": 1}, 200, clock=lambda: seconds)
    said = []
    for iteration in range(1, 101):
        seconds += 50 if iteration % 10 == 0 else 10  # each tenth is evaluated
        view.add(metrics(iteration, {"m": 0.5}), {})
        said.append(screen(view)[0].split("about ")[1])
    assert said[19] == "42 min left"
    assert said[20:24] == ["42 min left", "42 min left", "41 min left", "41 min left"]
    assert said[99] == "23 min left"


def test_sparklines() -> None:
    assert sparkline([0.0, 0.5, 1.0], 9) == "▁▅█"
    assert sparkline([0.5], 9) == "▅"
    assert sparkline([0.50, 0.501], 9) == "▄▅", "what hardly moves looks so"
    assert sparkline([0, 0, 1, 1, 0, 0, 1, 1], 4) == "▁█▁█"
    assert len(sparkline([n / 1000 for n in range(1000)], 13)) == 13


# --- where it is shown ------------------------------------------------------------------------------------------


def a_run(envs: Sequence[str] = ("math", "writing")) -> Any:
    """As much of a run as is looked at."""
    spec = SimpleNamespace(budget=SimpleNamespace(tokens=48, mode="truncate"))
    parts = SimpleNamespace(
        curriculum=SimpleNamespace(pools={name: [SimpleNamespace(id="t", budget=None)] for name in envs}),
        envs=SimpleNamespace(templates={name: SimpleNamespace(budget=256) for name in envs}),
        driver=SimpleNamespace(estimates={}),
    )
    run = SimpleNamespace(iterations=9, eval_every=0)
    critic = SimpleNamespace(enabled=True)
    recipe = SimpleNamespace(run=run, critic=critic, envs=dict.fromkeys(envs, spec))
    return SimpleNamespace(recipe=recipe, parts=parts, alarms=[], phase="")


RANKED = Ranked((), {"writing": 0.0}, {"writing": "too_few_pairs"})


def test_6_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    plain = Console(file=said)
    monkeypatch.setattr(live, "console", plain)
    monkeypatch.setattr(progress, "console", plain)
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    for quiet in (True, False):
        assert said.getvalue() == ""
        with live.training(a_run(), tmp_path, {}, quiet) as show:
            show(metrics(3, {"math": 0.256, "[red]": 1.0}, errors__timeout=2.0), RANKED)
    assert said.getvalue() == (
        "training 3/9 math: 26 % right, 29 tokens  writing: judge not measured, weight 0.00 (too few pairs)  "
        "1234 tok/s  2 errors\n"
    )


def test_6_the_line_of_a_measured_judge() -> None:
    found = metrics(1, {"math": 0.5}, critic__accuracy__writing__degradation=0.84)
    found |= {"critic/unreadable": 3.0, "critic/judgements": 40.0}
    assert line(found, ["math", "writing"], Ranked((), {"writing": 0.5})) == (
        "math: 50 % right, 29 tokens  writing: judge 84 % right, weight 0.50  3 of 40 verdicts unreadable  1234 tok/s"
    )


SHOWN = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_live import RANKED, a_run, metrics
from k2rl import live
from k2rl.progress import console
with live.training(a_run(), Path({folder!r}), {{}}, False) as show:
    show(metrics(3, {{"math": 0.75}}), RANKED)
    console.print("said meanwhile", markup=False)
    print("printed meanwhile")
    time.sleep(1.2)
    raise {error}
"""


@pytest.mark.parametrize("error", ["RuntimeError('broken')", "KeyboardInterrupt"])
def test_7_a_terminal_is_whole_after_an_error(tmp_path: Path, error: str) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(metrics(n, {"math": 0.25})) + "\n" for n in (1, 2)))
    out = on_a_terminal(SHOWN.format(tests=str(Path(__file__).parent), folder=str(tmp_path), error=error))
    visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l"), "the cursor is shown again"
    frames = visible.split("iteration 3 of 9")
    assert 3 <= len(frames) - 1 <= 9, "drawn at the beginning, now and then, and at the end; not more than that"
    assert out.count("\x1b[1A") >= 10, "in place"
    assert "▁▁█" in frames[-1], "the curve begins with what the run has done before"
    above, last = visible.rsplit("iteration 3 of 9", 1)
    assert "said meanwhile" in above
    assert "printed meanwhile" in above
    screen_, _, after = last.partition("errors    none")
    assert "Traceback" not in screen_
    assert after.lstrip("\r").startswith("\n")
    assert error.split("(")[0] in after


def test_7_a_run_on_a_terminal(tmp_path: Path) -> None:
    envs = {"math": {"id": "math", "args": {"level": 1}, "pool": 50, "budget": {"tokens": 12}}}
    run = {"iterations": 2, "eval_tasks": 2, "eval_every": 1, "threads": 1}
    data = {"model": {"path": "nano"}, "envs": envs, "run": run, "rollout": {"tasks": 2, "group_size": 2}}
    (tmp_path / "recipe.yaml").write_text(json.dumps(data))  # JSON is YAML
    arguments = ["k2rl", "train", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "run")]
    out = on_a_terminal(f"import sys; sys.argv = {arguments!r}; from k2rl.cli import main; main()")
    visible = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out)
    last = visible.rpartition("iteration 2 of 2")[2]
    row = next(text for text in last.splitlines() if text.startswith("math "))
    assert re.search(r" \d+/12 +\d+→\d+ %$", row.rstrip())
    assert re.search(r"took +(\d+\.\d s \d+% +){3}\d+\.\d s \d+%", last)
    assert "errors    none" in last
    assert "the model is in" in last


def on_a_terminal(program: str) -> str:
    """What a Python program writes to a terminal of 80 x 24."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24", "PYTHONIOENCODING": "utf-8"}
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):
        env.pop(name, None)
    child = subprocess.Popen([sys.executable, "-c", program], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    read = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's end of file on a terminal whose other end is closed
            break
        read += part
    child.wait()
    os.close(ours)
    return read.decode()
