"""What may import what, and where packages begin."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLUGINS = {"k2rl_envs", "k2rl_rewards"}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of all packages a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def test_k2rl_reaches_envs_and_rewards_through_plugins_only() -> None:
    files = sorted((ROOT / "k2rl").rglob("*.py"))
    assert files
    guilty = [str(p.relative_to(ROOT)) for p in files if PLUGINS & set(imported(p))]
    assert not guilty


def test_rewards_do_not_know_envs() -> None:
    files = (ROOT / "rewards").rglob("*.py")
    assert not [p.name for p in files if "k2rl_envs" in set(imported(p))]


@pytest.mark.parametrize("folder", ["envs", "rewards", "tests", "benchmarks", "recipes"])
def test_top_level_folders_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", ["k2rl", "envs/k2rl_envs", "rewards/k2rl_rewards"])
def test_packages_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


@pytest.mark.parametrize(
    "code",
    [
        "import k2rl, k2rl.recipe, k2rl.plugins",
        "sys.argv = ['k2rl', 'recipes']; from k2rl.cli import main; main()",
        "sys.argv = ['k2rl', '--help']; from k2rl.cli import main; main()",
    ],
)
def test_light_commands_load_no_torch(code: str) -> None:
    check = "import atexit, os, sys; atexit.register(lambda: os._exit(3 if 'torch' in sys.modules else 0)); "
    assert subprocess.run([sys.executable, "-c", check + code], stdout=subprocess.DEVNULL).returncode == 0
