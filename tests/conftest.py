"""Small shared pieces: the real data's folder, a tiny random model with a chat template, a tiny recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from k2rl import scratch
from k2rl.errors import UnavailableError
from k2rl.models import save_policy
from k2rl.protocols import Sandbox
from k2rl.recipe import ScratchConfig
from k2rl.sandbox import connect

REPOSITORY = Path(__file__).parent.parent
TEXTS = ["Compute 12*3+4", "12*3=36 36+4=40 #### 40", "Use 3 8 14 to make 38", "Reverse: abc", "hello world"]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real inputs; tests that need it are skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data in ../shared/data is not here")
    return folder


@pytest.fixture(scope="session")
def jail() -> Sandbox:
    """The sandbox of this machine; tests that run programs are skipped where there is none."""
    try:
        return connect("local")
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    return scratch.tokenizer(TEXTS * 20, 320)


@pytest.fixture
def tiny_model(tiny_tokenizer: Any) -> Any:
    """A random two-layer Llama, the same every time, with weights large enough to be opinionated."""
    model = scratch.model(ScratchConfig(hidden_size=64, layers=2, max_length=256), tiny_tokenizer, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4.0)
    return model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """The same kind of model as a transformers folder."""
    folder = tmp_path_factory.mktemp("tiny")
    model = scratch.model(ScratchConfig(hidden_size=64, layers=2, max_length=256), tiny_tokenizer, seed=0)
    save_policy(model, tiny_tokenizer, folder)
    return folder


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Work in a temporary folder and write files there."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write
