"""k2rl on what nobody here made: a real pretrained model, real problems, other people's puzzles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from k2rl import assets
from k2rl.loop import train
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve


def small(**keys: Any) -> dict[str, Any]:
    return {
        "run": {"iterations": 2, "checkpoint_every": 2, "eval_tasks": 8, "threads": 1},
        "rollout": {"tasks": 4, "group_size": 4},
        **keys,
    }


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_stories260k_on_gsm8k(shared_data: Path, tmp_path: Path) -> None:
    """Rewards near zero are honest here: a 260 k-parameter story teller does no arithmetic."""
    gsm = {"id": "math", "args": {"data": str(shared_data / "gsm8k/train.jsonl")}, "pool": 60, "budget": {"tokens": 40}}
    recipe = resolve(Recipe, small(model={"path": str(shared_data / "stories260k")}, envs={"gsm": gsm}))
    summary = train(recipe, tmp_path / "run", quiet=True)
    assert [r["iteration"] for r in rows(tmp_path / "run")] == [1, 2]
    assert all(r["tokens/gsm"] > 0 and -1 <= r["reward/gsm"] <= 1 for r in rows(tmp_path / "run"))
    assert summary["eval_after"]["gsm"]["n"] > 0
    assert summary["eval_after"]["gsm"]["no_verdict"] == 0


@pytest.mark.slow
def test_nano_on_a_reasoning_gym_data_set(tmp_path: Path) -> None:
    if not assets.NANO.is_dir():
        pytest.skip("nano is not in this checkout")
    chain = {"id": "logic", "args": {"game": "reasoning_gym:chain_sum", "instruction": ""}, "pool": 40}
    chain["budget"] = {"tokens": 24}
    recipe = resolve(Recipe, small(envs={"chain": chain}))
    train(recipe, tmp_path / "run", quiet=True)
    assert [r["iteration"] for r in rows(tmp_path / "run")] == [1, 2]
    assert all(r["errors/verifier_error"] == 0 for r in rows(tmp_path / "run"))


@pytest.mark.slow
def test_stories260k_on_knights_and_knaves(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="reading parquet needs the extra `parquet`")
    data = str(shared_data / "knights_and_knaves/3ppl/train.parquet")
    spec = {"id": "logic", "args": {"game": "knights", "data": data}, "pool": 200, "budget": {"tokens": 16}}
    recipe = resolve(Recipe, small(model={"path": str(shared_data / "stories260k")}, envs={"kk": spec}))
    train(recipe, tmp_path / "run", quiet=True)
    assert len(rows(tmp_path / "run")) == 2
