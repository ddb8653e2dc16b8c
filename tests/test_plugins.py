"""From a name to a class, and one line for each way that can fail."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import pytest

from k2rl.env import GymTextEnv, SingleTurnEnv
from k2rl.errors import UserError
from k2rl.plugins import installed, make_env, make_reward, resolve

MODULE = """
import gymnasium
from k2rl import SingleTurnEnv, Task, UnicodeText, Verdict

class MyEnv(SingleTurnEnv):
    def __init__(self, level=1, *, words="abc"):
        self.level = level
    def tasks(self, split, seed):
        yield Task("?", answer="!")
    def verify(self, task, response):
        return Verdict.of(response == task.answer)

class Needy(MyEnv):
    def __init__(self, path):
        pass

class Raising(MyEnv):
    def __init__(self, text):
        import json
        self.data = json.loads(text)

class Plain(gymnasium.Env):
    observation_space = action_space = UnicodeText()

class NoEnv:
    pass

class Exact:
    def __call__(self, response, reference):
        return Verdict.of(response == reference["answer"])

def function():
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose modules have names of this test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def module(folder: Path, name: str, text: str = MODULE) -> str:
    """Write a module with a name no other test uses, as imports are remembered; returns that name."""
    unique = f"{name}_{folder.name}"
    (folder / f"{unique}.py").write_text(text, encoding="utf-8")
    return unique


def env_problem(name: str, **args: object) -> str:
    with pytest.raises(UserError) as caught:
        make_env(name, args)
    return str(caught.value)


def test_an_entry_point() -> None:
    if "math" not in installed("envs"):
        pytest.skip("k2rl is not installed as a package here")
    assert make_env("math").budget > 0
    assert f"{resolve('envs', 'math').__module__}:{resolve('envs', 'math').__name__}" == installed("envs")["math"]
    assert callable(make_reward("math_answer"))


def test_a_module_in_the_current_folder(folder: Path) -> None:
    env = make_env(f"{module(folder, 'mine')}:MyEnv", {"level": 3})
    assert isinstance(env, SingleTurnEnv)
    assert vars(env)["level"] == 3


def test_a_module_inside_a_package_called_envs(folder: Path) -> None:
    package = folder / f"envs_{folder.name}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "mine.py").write_text(MODULE, encoding="utf-8")
    assert isinstance(make_env(f"{package.name}.mine:MyEnv"), SingleTurnEnv)


def test_a_file_relative_and_absolute_is_one_class(folder: Path) -> None:
    name = module(folder, "mine")
    assert resolve("envs", f"{name}.py:MyEnv") is resolve("envs", f"{folder / name}.py:MyEnv")


def test_two_files_of_one_name_are_two_classes(folder: Path) -> None:
    for sub in ("a", "b"):
        (folder / sub).mkdir()
        (folder / sub / "mine.py").write_text(MODULE, encoding="utf-8")
    assert resolve("envs", "a/mine.py:MyEnv") is not resolve("envs", "b/mine.py:MyEnv")


def test_plain_gymnasium_envs_are_wrapped(folder: Path) -> None:
    name = module(folder, "mine")
    assert isinstance(make_env(f"{name}:Plain"), GymTextEnv)
    gymnasium.register(id="k2rl-test/Plain-v0", entry_point=f"{name}:Plain")
    assert isinstance(make_env("gym:k2rl-test/Plain-v0"), GymTextEnv)
    assert "Nowhere" in env_problem("gym:Nowhere-v0")


def test_a_reward(folder: Path) -> None:
    name = module(folder, "mine")
    assert make_reward(f"{name}:Exact")("4", {"answer": "4"}).score == 1.0
    with pytest.raises(UserError, match="not a reward"):
        make_reward(f"{name}:NoEnv")


def test_unknown_names() -> None:
    line = env_problem("maht")
    assert "unknown env 'maht'" in line
    assert "module:Class" in line
    if "math" in installed("envs"):
        assert "did you mean 'math'" in line


def test_unknown_modules_files_and_classes(folder: Path) -> None:
    name = module(folder, "mine")
    assert "no module 'nowhere'" in env_problem("nowhere:MyEnv")
    assert "no module" in env_problem(f"{name}.sub:MyEnv")
    assert "no file nowhere.py" in env_problem("nowhere.py:MyEnv")
    assert "did you mean 'MyEnv'" in env_problem(f"{name}:MyEnf")
    assert "it defines MyEnv" in env_problem(f"{name}:function")
    assert "no class ''" in env_problem(f"{name}:")


def test_a_module_that_needs_another_one_says_which(folder: Path) -> None:
    name = module(folder, "needs", "import nowhere_at_all")
    for form in (name, f"{name}.py"):
        line = env_problem(f"{form}:MyEnv")
        assert "nowhere_at_all" in line
        assert "no file" not in line


@pytest.mark.parametrize("text", ["def broken(:\n", "1 / 0\n"])
def test_a_module_that_fails_on_import_is_the_users_to_repair(folder: Path, text: str) -> None:
    name = module(folder, "broken", text)
    for form in (name, f"{name}.py"):
        line = env_problem(f"{form}:MyEnv")
        assert "\n" not in line
        assert "failed" in line


def test_a_constructor_that_raises_is_the_users_to_repair(folder: Path) -> None:
    name = module(folder, "mine")
    line = env_problem(f"{name}.py:Raising", text="{")
    assert line.startswith(f"making {name}.py:Raising failed: JSONDecodeError: Expecting property name")
    assert line.endswith(f"({folder / name}.py:20)"), "the place in the user's own code, not in the library"


def test_what_is_no_environment(folder: Path) -> None:
    assert "subclass k2rl.SingleTurnEnv" in env_problem(f"{module(folder, 'mine')}:NoEnv")


def test_arguments(folder: Path) -> None:
    name = module(folder, "mine")
    assert "did you mean 'level'" in env_problem(f"{name}:MyEnv", levle=2)
    assert "needs the argument 'path'" in env_problem(f"{name}:Needy")
