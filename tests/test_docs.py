"""Every code block of docs/write-an-env.md runs, in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from k2rl.assets import NANO
from k2rl.env import Env
from k2rl.plugins import make_env

DOC = Path(__file__).parents[1] / "docs" / "write-an-env.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
# What makes a run of the page's recipes short; the page shows full-length ones.
SHORT = [
    "run.iterations=1",
    "run.eval_tasks=2",
    "rollout.tasks=3",
    "rollout.group_size=2",
    "trainer.updates_per_iteration=1",
]


def blocks() -> list[tuple[str, str, str]]:
    """Language, title and text of each block."""
    return BLOCK.findall(DOC.read_text(encoding="utf-8"))


def command(line: str) -> list[str]:
    """A shell line of the page as a command of this interpreter, made short and offline where needed."""
    words = line.split()
    k2rl = [sys.executable, "-c", "from k2rl.cli import main; main()"]
    if words[0] == "k2rl":
        return k2rl + words[1:] + (SHORT if words[1] == "train" else [])
    if words[0] == "pip":
        offline = ["--quiet", "--no-deps", "--no-build-isolation", "--target", "site"]
        return [sys.executable, "-m", "pip", *words[1:2], *offline, *words[2:]]
    assert words[0] == "python"
    return [sys.executable, *words[1:]]


def run(arguments: list[str], folder: Path) -> str:
    path = os.pathsep.join([str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(arguments, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def write_files(folder: Path) -> None:
    for _, title, text in blocks():
        if title:
            (folder / title).write_text(text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not NANO.is_dir(), reason="the nano model is not built")
def test_every_block_runs(tmp_path: Path) -> None:
    output = ""
    for language, title, text in blocks():
        if title:
            (tmp_path / title).write_text(text, encoding="utf-8")
        elif language == "python":
            run([sys.executable, "-c", text], tmp_path)
        else:
            assert language == "sh", f"a block in {language} needs a title, or a way to run it"
            for line in text.splitlines():
                output = run(command(line), tmp_path)
    assert "word_chain" in output, "the packaged env is listed"


def test_python_blocks_run_on_their_own(tmp_path: Path) -> None:
    for language, _, text in blocks():
        if language == "python":
            run([sys.executable, "-c", text], tmp_path)


def play(env: Env, actions: list[str]) -> tuple[object, bool, bool]:
    info: dict[str, object] = {}
    terminated = truncated = False
    for action in actions:
        _, _, terminated, truncated, info = env.step(action)
    return info.get("verdict"), terminated, truncated


def test_the_guessing_game(tmp_path: Path) -> None:
    write_files(tmp_path)
    env = make_env(f"{tmp_path / 'guess_env.py'}:GuessEnv")
    for task in (*env.tasks("train", 0), *env.tasks("test", 0)):
        env.reset(options={"task": task})
        gold = env.gold(task)
        assert gold is not None
        verdict, terminated, _ = play(env, list(gold))
        assert terminated
        assert getattr(verdict, "status", None) == "correct"
        assert len(gold) <= 7
    env.reset(options={"task": task})
    verdict, terminated, truncated = play(env, ["100"] * 7)
    assert truncated
    assert not terminated
    assert getattr(verdict, "status", None) == "wrong"


def test_the_guessing_game_goes_on_from_a_snapshot(tmp_path: Path) -> None:
    write_files(tmp_path)
    env = make_env(f"{tmp_path / 'guess_env.py'}:GuessEnv")
    task = next(iter(env.tasks("train", 0)))
    env.reset(options={"task": task})
    play(env, ["100"] * 5)
    state = env.snapshot()
    assert state is not None
    other = make_env(f"{tmp_path / 'guess_env.py'}:GuessEnv")
    other.restore(task, state)
    assert play(other, ["100"]) == play(env, ["100"])
    assert play(other, ["100"])[2]


def test_the_plain_gymnasium_env(tmp_path: Path) -> None:
    write_files(tmp_path)
    env = make_env(f"{tmp_path / 'vowel_env.py'}:VowelEnv")
    tasks = list(islice(env.tasks("train", 0), 5))
    for task in tasks:
        observation, _ = env.reset(options={"task": task})
        assert observation == task.prompt
        vowels = sum(letter in "aeiou" for letter in observation.split()[-1].rstrip("?"))
        assert env.step(str(vowels))[1] == 1.0
