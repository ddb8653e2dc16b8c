"""`k2rl doctor RECIPE`: what a run needs is checked before anything starts, and what to do is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from k2rl import cli, memory, preflight
from k2rl.doctor import Check
from k2rl.memory import GIB, Estimate
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve


def recipe(folder: Path, *overrides: str) -> Recipe:
    data = {
        "model": {"path": str(folder)},
        "envs": {"m": {"id": "math", "pool": 50, "args": {"instruction": ""}, "budget": {"tokens": 16}}},
        "rollout": {"tasks": 4, "group_size": 4, "slots": 8},
        "trainer": {"micro_batch_tokens": 256},
    }
    return resolve(Recipe, data, overrides)


def checked(chosen: Recipe, tmp_path: Path) -> tuple[dict[str, Check], Estimate | None]:
    checks, estimate = preflight.examine(chosen, tmp_path / "runs")
    return {check.what: check for check in checks}, estimate


def test_a_recipe_that_runs_passes_every_check(tiny_folder: Path, tmp_path: Path) -> None:
    checks, estimate = checked(recipe(tiny_folder), tmp_path)
    assert {check.status for check in checks.values()} == {"ok"}
    assert list(checks) == ["device", "model", "environments", "tasks", "memory", "disk"]
    assert "budgets to 16" in checks["tasks"].found
    assert estimate is not None
    assert estimate.peak < GIB


@pytest.mark.parametrize(
    ("override", "what", "says"),
    [
        ("model.path=./nowhere", "model", "no config.json there"),
        ("model.device=cuda:77", "device", "model.device=cuda:77"),
        ("envs.m.budget.tokens=1000", "tasks", "no task of env m fits the model's 256 tokens"),
        ("model.lora={modules: [c_attn]}", "model", "llama has no linear layer c_attn"),
        ("envs.m.args={data: nowhere.jsonl}", "environments", "nowhere.jsonl"),
        ("critic.enabled=true", "environments", "critic.enabled=true has no effect"),
        ("envs.w.id=writing", "environments", "leaves its verdicts to a critic"),
    ],
)
def test_what_is_missing_is_named(tiny_folder: Path, tmp_path: Path, override: str, what: str, says: str) -> None:
    if "lora" in override:
        pytest.importorskip("peft")
    checks, estimate = checked(recipe(tiny_folder, override), tmp_path)
    assert checks[what].status == "broken"
    assert says in f"{checks[what].found}: {checks[what].fix}"
    assert estimate is None


def test_what_a_judge_is_asked_must_fit_as_well(tiny_folder: Path, tmp_path: Path) -> None:
    fits = ["critic.enabled=true", "envs.w={id: writing, pool: 20}", "envs.w.budget.tokens=100"]
    checks, estimate = checked(recipe(tiny_folder, *fits), tmp_path)
    assert checks["tasks"].status == "broken"
    assert "env w: no task fits" in checks["tasks"].found
    assert estimate is None


def test_too_little_memory_names_what_makes_it_fit(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = recipe(tiny_folder, "trainer.micro_batch_tokens=16384", "rollout.tasks=64", "rollout.group_size=16")
    _, plain = checked(chosen, tmp_path)
    assert plain is not None
    _, less = checked(recipe(tiny_folder, "trainer.micro_batch_tokens=4096"), tmp_path)
    assert less is not None
    room = (plain.peak + less.peak) // 2
    monkeypatch.setattr(memory, "available", lambda device: int(room / 0.9))
    checks, _ = checked(chosen, tmp_path)
    assert checks["memory"].status in ("broken", "optional")
    assert checks["memory"].fix.startswith("trainer.micro_batch_tokens=4096 (then ")
    monkeypatch.setattr(memory, "available", lambda device: GIB // 4)
    checks, _ = checked(chosen, tmp_path)
    assert checks["memory"].status == "broken"
    assert checks["memory"].fix.endswith("and a smaller model or a larger device")


def test_the_command_prints_json_and_fails_where_the_run_would(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def doctor(*words: str) -> tuple[int, Any]:
        monkeypatch.setattr(sys, "argv", ["k2rl", "doctor", "quickstart", *words, "--json"])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0), json.loads(capsys.readouterr().out)
        raise AssertionError("main always ends by exiting")

    small = [f"model.path={tiny_folder}", "envs.code.id=math", "envs.code.args={}"]
    code, report = doctor(*small)
    assert code == 0, report
    assert report["memory"]["peak"] > sum(report["memory"]["held"].values())
    monkeypatch.setattr(memory, "available", lambda device: GIB // 4)
    code, report = doctor(*small)
    assert code == 1
    assert {c["what"]: c["status"] for c in report["checks"]}["memory"] == "broken"


def test_a_run_that_will_not_fit_says_so_and_starts(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from k2rl.setup import build

    monkeypatch.setattr(memory, "available", lambda device: 1 << 20)
    build(recipe(tiny_folder, "run.eval_tasks=0")).close()
    assert "memory: this run needs about" in capsys.readouterr().err


def test_processes_that_can_not_be_started_are_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, gpus = {"ray", "deepspeed"}, 0
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr(preflight, "find_spec", lambda name: name if name in there else None)
    chosen = recipe(tiny_folder, "cluster.address=local", "trainer.ranks=2", "rollout.engines=2")
    chosen.model.device = "cpu"
    checks, _ = checked(chosen, tmp_path)
    assert checks["processes"].status == "broken"
    assert checks["processes"].fix == "pip install 'k2rl[vllm]'"
    there.add("vllm")
    checks, estimate = checked(chosen, tmp_path)
    assert checks["processes"].found == "trainer ranks: 2, engines: 2, GPUs: 0 here"
    assert estimate is not None
    assert "by this process, 2 ranks and 2 engines" in checks["memory"].found
    gpus = 3
    apart = recipe(tiny_folder, "cluster.address=local", "cluster.colocated=false", "trainer.ranks=2")
    apart.model.device = "cpu"
    for each in (chosen, apart):
        checks, _ = checked(each, tmp_path)
        assert checks["processes"].status == "ok"
    apart.rollout.engines = 2
    checks, _ = checked(apart, tmp_path)
    assert checks["processes"].found == "4 GPUs needed, 3 here"
    apart.cluster.address = "auto"
    checks, _ = checked(apart, tmp_path)
    assert checks["processes"].found.endswith("in the cluster, which is not asked")


def test_a_tracker_that_is_not_installed_is_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k2rl.trackers.find_spec", lambda name: None)
    checks, _ = checked(recipe(tiny_folder, "run.trackers=[wandb]"), tmp_path)
    assert checks["trackers"].status == "broken"
    assert checks["trackers"].found == "run.trackers: wandb is not installed"
    assert checks["trackers"].fix.startswith("pip install 'k2rl[wandb]'")
