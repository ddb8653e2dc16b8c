"""Every command of docs/data.md runs, in order, on the page's own files."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from k2rl.assets import NANO

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
SHORT = ["run.iterations=1", "run.eval_tasks=2", "rollout.tasks=2", "rollout.group_size=2"]


@pytest.mark.slow
@pytest.mark.skipif(not NANO.is_dir(), reason="the nano model is not built")
def test_the_page_runs(tmp_path: Path) -> None:
    said = ""
    for language, title, text in BLOCK.findall(PAGE):
        if title:
            (tmp_path / title).write_text(text, "utf-8")
        for line in text.splitlines() if language == "sh" else ():
            program, *arguments = shlex.split(line)
            assert program == "k2rl"
            command = [sys.executable, "-m", "k2rl", *arguments, *(SHORT if arguments[0] == "train" else [])]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            said += done.stdout
    assert "12 rows by question; 0 exact, 1 normalised and 0 near duplicates" in said
    assert "11 of 11 gold answers are accepted" in said
    assert (tmp_path / "easy.jsonl").is_file()


def test_its_keys_exist() -> None:
    from k2rl.recipe import Recipe
    from k2rl.recipe_files import resolve

    for language, title, text in BLOCK.findall(PAGE):
        data = yaml.safe_load(text) if language == "yaml" else {}
        if "envs" in data:
            assert resolve(Recipe, data, source=title).envs
