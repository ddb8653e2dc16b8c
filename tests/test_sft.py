"""SFT: it learns, ends by its rule, writes a model that loads, and refuses what is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from k2rl.errors import UserError
from k2rl.models import load_policy
from k2rl.optim.model_optimizer import ModelOptimizer
from k2rl.recipe import ModelConfig, SftRecipe, SftStop
from k2rl.recipe_files import resolve
from k2rl.sft import sft, why_ended


def recipe(*overrides: str) -> SftRecipe:
    data = {
        "model": {"scratch": {"hidden_size": 32, "layers": 1, "vocab_size": 320, "max_length": 128}},
        "envs": {"math": {"id": "math", "args": {"level": 1, "instruction": ""}, "pool": 300}},
        "optim": {"name": "muon", "lr": {"start": 0.01}, "adamw_lr_ratio": 0.3},
        "sft": {"batch_tokens": 512, "held_out": 20, "eval_seconds": 0.5, "warmup_steps": 5, "ema": 20},
        "threads": 1,
    }
    return resolve(SftRecipe, data, ["sft.stop.max_minutes=0.05", "sft.stop.min_minutes=0.04", *overrides])


def test_a_new_model_learns_its_demonstrations(tmp_path: Path) -> None:
    report = sft(recipe("sft.save_dtype=bfloat16"), tmp_path / "model", quiet=True)
    losses = [h["held_out_loss/math"] for h in report["history"]]
    assert losses[-1] < 0.7 * losses[0]
    assert report["ended"]
    assert report == json.loads((tmp_path / "model" / "sft.json").read_text())
    policy = load_policy(ModelConfig(path=str(tmp_path / "model")))
    assert policy.model.dtype is torch.float32
    prompt = policy.chat.prompt([{"role": "user", "content": "Compute 1+2"}])
    assert policy.chat.tokenizer.decode(prompt) == "<|user|>Compute 1+2<|end|><|assistant|>"
    for special in ("<|judge|>", "<|A|>", "<|B|>", "<|tool|>"):
        assert len(policy.chat.tokenizer(special).input_ids) == 1
    again = sft(recipe(f"model.path={tmp_path / 'model'}"), tmp_path / "again", quiet=True)
    assert again["history"][0]["held_out_loss"] < losses[0]


def test_each_stage_ends_by_the_rule_counted_from_its_own_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    update = ModelOptimizer.update

    def recorded(self: ModelOptimizer, lr: float) -> None:
        rates.append(lr)
        update(self, lr)

    monkeypatch.setattr(ModelOptimizer, "update", recorded)
    rule = ["sft.stop.improvement=0.99", "sft.stop.min_minutes=0", "sft.stop.max_minutes=5", "sft.eval_seconds=0.2"]
    report = sft(recipe("sft.stages=[1,0.5]", *rule), tmp_path / "model", quiet=True)
    first, second = report["stages"]
    assert all("fell by" in stage["ended"] for stage in report["stages"])
    assert (first["lr"], second["lr"]) == (0.01, 0.005)
    assert rates[first["steps"] - 1] == 0.01
    assert rates[first["steps"] :] == [0.005] * second["steps"]
    assert report["steps"] == first["steps"] + second["steps"]
    assert min([h["stage"] for h in report["history"]].count(n) for n in (1, 2)) >= 2


def test_the_last_stage_is_sure_of_its_share_of_the_time(tmp_path: Path) -> None:
    limits = ["sft.stages=[1,0.5]", "sft.cooldown_share=0.5", "sft.stop.improvement=0", "sft.stop.min_minutes=5"]
    report = sft(recipe(*limits), tmp_path / "model", quiet=True)
    first, second = report["stages"]
    assert first["ended"] == "0.025 minutes are over"
    assert second["ended"].endswith("minutes are over")
    assert second["steps"] > first["steps"] / 4
    assert second["held_out_loss"] < 1.3 * first["held_out_loss"], "it goes on from where the first one ended"


def test_learning_needs_no_set_up_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the machine has no jail, code can be imitated all the same."""
    from k2rl_envs.math_env import MathEnv

    monkeypatch.setattr(MathEnv, "setup", lambda self: pytest.fail("it was set up"))
    sft(recipe("sft.stop.max_minutes=0.01"), tmp_path / "model", quiet=True)


def test_an_optional_env_that_cannot_run_here_is_left_out(tmp_path: Path) -> None:
    nowhere = ["envs.nowhere.id=two_turn_env:Nowhere", "envs.nowhere.optional=true"]
    report = sft(recipe("sft.stop.max_minutes=0.01", *nowhere), tmp_path / "model", quiet=True)
    assert report["left_out"] == {"nowhere": "it needs a jail"}
    assert report["demonstrations"] == 300
    alone = resolve(SftRecipe, {"envs": {"nowhere": {"id": "two_turn_env:Nowhere", "optional": True}}})
    with pytest.raises(UserError, match="no environment is left: nowhere: it needs a jail"):
        sft(alone, tmp_path / "none", quiet=True)


def test_it_refuses_a_folder_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        sft(recipe(), tmp_path, quiet=True)
    with pytest.raises(UserError, match="can't be written"):
        sft(recipe(), tmp_path / "x" / "y", quiet=True)


def test_it_refuses_demonstrations_longer_than_the_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a demonstration or a judged pair has \d+ tokens, the model takes 16"):
        sft(recipe("model.scratch.max_length=16"), tmp_path / "m", quiet=True)


@pytest.mark.parametrize(
    ("losses", "ended"),
    [([2.0, 1.0, 0.5, 0.4, 0.3], False), ([2.0, 1.0, 0.5, 0.5, 0.498], True), ([1.0], False)],
)
def test_the_rule_compares_with_four_fifths_of_the_way(losses: list[float], ended: bool) -> None:
    history = [{"step": 100.0 * (i + 1), "seconds": 60.0 * (i + 1), "held_out_loss": x} for i, x in enumerate(losses)]
    assert (why_ended(history, SftStop(min_minutes=1)) is not None) is ended


def test_the_rule_waits_for_the_least_and_ends_at_the_most_time() -> None:
    history = [{"step": 100.0 * (i + 1), "seconds": 60.0 * (i + 1), "held_out_loss": 1.0} for i in range(5)]
    assert why_ended(history, SftStop(min_minutes=10)) is None
    assert why_ended(history, SftStop(min_minutes=10, max_minutes=5)) == "5 minutes are over"


def test_preference_pairs_teach_the_model_to_judge(tmp_path: Path) -> None:
    """An easy kind of pair: the writing env's, where the worse text shows in one word."""
    writing = [
        "envs.writing.id=writing",
        "envs.writing.pool=200",
        "sft.pairs.shares.writing=1.0",
        "sft.pairs.per_task=3",
        "model.scratch.max_length=256",
    ]
    report = sft(recipe(*writing, "sft.stop.max_minutes=0.1"), tmp_path / "model", quiet=True)
    assert report["judged"] == 2 * 3 * 200, "three pairs of every task, both orders"
    assert report["demonstrations"] == 500
    last = report["history"][-1]
    assert {"judge_accuracy/writing", "judge_accuracy/writing apart", "judge_accuracy/math"} <= last.keys()
    assert all(0 <= last[key] <= 1 for key in last if key.startswith("judge_accuracy"))


def test_pairs_are_asked_only_of_who_has_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such env; there are math"):
        recipe("sft.pairs.shares.writting=0.1")
    with pytest.raises(UserError, match=r"shares.math is 2.0: it is a share"):
        recipe("sft.pairs.shares.math=2")
    with pytest.raises(UserError, match=r"sft.pairs.per_task is 0: it must be 1 or more"):
        recipe("sft.pairs.per_task=0")
    stories = ["envs.s.id=stories", "envs.s.pool=5", "sft.pairs.shares.s=1.0", "sft.held_out=5"]
    with pytest.raises(UserError, match=r"sft.pairs.shares.s has no effect: stories can't corrupt its gold"):
        sft(recipe(*stories), tmp_path / "m", quiet=True)
