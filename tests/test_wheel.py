"""The wheel works on its own: in an empty environment, it trains in a folder that has its own `envs`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from k2rl.assets import NANO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NANO.is_dir(), reason="the nano model is not built"),
]

ROOT = Path(__file__).parents[1]
ENV = '''"""An environment in a package called envs, as many projects have one."""
from k2rl import SingleTurnEnv, Task, Verdict

class MyEnv(SingleTurnEnv):
    budget = 8
    def tasks(self, split, seed):
        for n in range(8):
            yield Task(f"{n}+{1 if split == 'train' else 2}", answer=str(n + 1))
    def verify(self, task, response):
        return Verdict.of(response.strip() == task.answer)
'''
RECIPE = """# One iteration.
envs:
  mine: {id: "envs.my_env:MyEnv"}
run: {iterations: 1, eval_tasks: 4}
rollout: {tasks: 2, group_size: 4}
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run without this process's import path; return what it printed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment: k2rl comes from the wheel, its dependencies from this one.

    A .pth inside a folder that a .pth adds is not read, so an editable k2rl here stays out.
    """
    venv = tmp_path_factory.mktemp("wheel") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv, cwd=venv.parent)
    python = venv / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, wheel, cwd=venv.parent)
    (site,) = venv.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return venv / "bin"


def test_the_wheel_holds_what_a_run_needs(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for needed in (
        "k2rl/py.typed",
        "k2rl_envs/py.typed",
        "k2rl_rewards/py.typed",
        "k2rl/_assets/recipes/quickstart.yaml",
        "k2rl/_assets/rubrics/core.yaml",
        "k2rl/_assets/schemas.yaml",
        "k2rl/_assets/nano/model.safetensors",
    ):
        assert needed in names
    assert not [n for n in names if n.startswith(("envs/", "rewards/", "tests/"))]
    assert wheel.stat().st_size < 10e6


def test_it_trains_where_the_user_has_an_envs_package(bin_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").touch()
    (tmp_path / "envs" / "my_env.py").write_text(ENV, encoding="utf-8")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")

    where = run(bin_folder / "python", "-c", "import k2rl; print(k2rl.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(bin_folder.parent)
    run(bin_folder / "k2rl", "train", "recipe.yaml", "--run-dir", "out", "--json", cwd=tmp_path)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    for moment in ("eval_before", "eval_after"):
        assert 0.0 <= summary[moment]["mine"]["pass@1"] <= 1.0

    listed = {row["name"] for row in json.loads(run(bin_folder / "k2rl", "env", "list", "--json", cwd=tmp_path))}
    assert {"math", "logic"} <= listed
    checks = json.loads(run(bin_folder / "k2rl", "doctor", "--json", cwd=tmp_path))
    assert not [check for check in checks if check["status"] == "broken"]
