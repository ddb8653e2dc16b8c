"""Data sets by `hf:` ids, without a network: saved ones, folders of parquet, and every way to be told no."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from k2rl_envs.math_env import MathEnv

from k2rl.errors import UserError
from k2rl.records import records

ROWS = [{"question": f"What is {n}+1?", "answer": f"#### {n + 1}"} for n in range(60)]


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    found = pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(found.config, "HF_HUB_OFFLINE", True)
    found.disable_progress_bars()
    return found


def test_a_saved_data_set(datasets: Any, tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    places = [place for place, _ in records(f"hf:{tmp_path}/one")]
    assert places[:2] == [f"hf:{tmp_path}/one, row 1", f"hf:{tmp_path}/one, row 2"]
    both = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS[:9]))
    both.save_to_disk(tmp_path / "both")
    env = MathEnv(data=f"hf:{tmp_path}/both", test_data=f"hf:{tmp_path}/both@test", instruction="")
    assert [len(list(env.tasks(split, 0))) for split in ("train", "test")] == [51, 9]
    assert all(env.verify(t, env.gold(t)).score == 1 for t in env.tasks("train", 0))
    with pytest.raises(UserError, match=r"both@dev: no split 'dev'; it has train, test"):
        list(records(f"hf:{tmp_path}/both@dev"))


def test_a_folder_of_parquet_and_a_slice(datasets: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "data"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list(ROWS).to_parquet(folder / "train-00000-of-00001.parquet")
    datasets.Dataset.from_list(ROWS[:5]).to_parquet(folder / "test-00000-of-00001.parquet")
    assert [len(list(records(f"hf:{tmp_path}/mine{split}"))) for split in ("", "@test", "@train[:7]")] == [60, 5, 7]
    with pytest.raises(UserError, match=r"mine@dev can't be loaded: Unknown split \"dev\"") as caught:
        list(records(f"hf:{tmp_path}/mine@dev"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"mine:other can't be loaded: .*other") as caught:
        list(records(f"hf:{tmp_path}/mine:other"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["hf:", "hf::main", "hf:a/b:c:d", "hf:a/b@"])
def test_an_id_that_is_none(source: str) -> None:
    with pytest.raises(UserError, match=r"write hf:REPO\[:CONFIG\]\[@SPLIT\], such as hf:openai/gsm8k:main@train"):
        list(records(source))


def test_without_the_library_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r'needs datasets: pip install "k2rl\[datasets\]"'):
        list(records("hf:nobody/nothing"))


@pytest.mark.slow
def test_without_a_network_a_run_ends_with_one_line(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    (tmp_path / "recipe.yaml").write_text("envs: {gsm: {id: math, args: {data: 'hf:openai/gsm8k:main'}}}\n")
    command = [sys.executable, "-m", "k2rl", "train", "recipe.yaml", "--run-dir", "out"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: hf:openai/gsm8k:main can't be reached: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
