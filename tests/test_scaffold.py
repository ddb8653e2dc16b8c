"""`k2rl env new`: what it writes works as it is."""

from __future__ import annotations

import io
import shlex
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from k2rl import recipe, recipe_files, scaffold
from k2rl.errors import UserError
from k2rl.plugins import make_env

NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> int:
    """Lines with code on them: no blank lines, comments or docstrings."""
    lines: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            statement.append(token)
        elif token.type == tokenize.NEWLINE:
            if [t.type for t in statement] != [tokenize.STRING]:
                lines.update(n for t in statement for n in range(t.start[0], t.end[0] + 1))
            statement = []
    return len(lines)


def test_the_environment_is_small() -> None:
    lines = code_lines(scaffold.ENV_TEMPLATE)
    assert lines <= 30
    doc = (Path(__file__).parents[1] / "docs" / "write-an-env.md").read_text(encoding="utf-8")
    assert f"a whole environment in {lines} lines of code" in doc


def test_its_own_test_passes(tmp_path: Path) -> None:
    scaffold.new_env("word_chain", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_word_chain_env.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_printed_command_names_an_env_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my envs").mkdir()
    made = scaffold.new_env("rev", Path("my envs"))
    program, command, name, *overrides = shlex.split(made.train_command)
    assert (program, command, name) == ("k2rl", "train", "quickstart")
    loaded = recipe_files.resolve(recipe.Recipe, {}, overrides)
    env = make_env(loaded.envs["rev"].id)
    assert type(env).__name__ == "RevEnv"
    assert next(iter(env.tasks("train", 0))).answer


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "test_mine_env.py").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"test_mine_env\.py exists"):
        scaffold.new_env("mine", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["test_mine_env.py"]
    assert (tmp_path / "test_mine_env.py").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["", "9lives", "a-b", "a.b", "../a", "class"])
def test_names_that_are_no_identifiers(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't name an environment"):
        scaffold.new_env(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        scaffold.new_env("mine", tmp_path / "nowhere")


def test_class_names() -> None:
    assert [scaffold.class_name(n) for n in ("rev", "word_chain", "my2D")] == [
        "RevEnv",
        "WordChainEnv",
        "My2DEnv",
    ]
