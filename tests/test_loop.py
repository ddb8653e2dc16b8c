"""Whole runs on a tiny random model: what they write, that they resume identically, and what they refuse."""

from __future__ import annotations

import copy
import gzip
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from k2rl import metric_keys
from k2rl.curriculum import pool
from k2rl.errors import RunError, UnavailableError, UserError
from k2rl.loop import train
from k2rl.losses import OBJECTIVES
from k2rl.models import Policy
from k2rl.plugins import make_env
from k2rl.protocols import Completion
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve, save
from k2rl.rollout import RolloutDriver
from k2rl.samplers.torch_sampler import TorchSampler
from k2rl.trainers.torch_trainer import TorchTrainer

HERE = Path(__file__).parent


@pytest.fixture
def recipe(tiny_folder: Path) -> Callable[..., Recipe]:
    """Two envs (one without verdicts, one of two turns), PTX, temperature decay, several updates."""

    def make(*overrides: str) -> Recipe:
        data = {
            "seed": 3,
            "model": {"path": str(tiny_folder)},
            "envs": {
                "gym": {
                    "id": "two_turn_env:PlainGym",
                    "reward_range": [0, 4],
                    "pool": 30,
                    "budget": {"tokens": 12, "penalty": 0.1},
                    "temperature": {"start": 1.3, "end": 0.9},
                },
                "two": {"id": "two_turn_env:TwoTurn", "pool": 20},
                "math": {"id": "math", "args": {"level": 1, "instruction": ""}, "pool": 50, "budget": {"tokens": 10}},
            },
            "run": {"iterations": 6, "checkpoint_every": 2, "eval_tasks": 4, "threads": 1},
            "rollout": {"tasks": 6, "group_size": 4, "slots": 16},
            "optim": {"lr": {"start": 0.003, "end": 0.001}},
            "ptx": {"weight": {"start": 0.1}, "tokens": 128},
        }
        return resolve(Recipe, data, overrides)

    return make


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Every key that must be identical; all are documented."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [key for row in rows for key in row if metric_keys.of(key) is None] == []
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "perf/"))} for row in rows]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(run_dir / "model" / "model.safetensors")
    return found


def assert_identical(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    assert all(torch.equal(t, weights(b)[n]) for n, t in weights(a).items())
    for kind in ("rollouts", "critiques", "judged"):
        names = sorted(p.name for p in (a / kind).glob("*"))
        assert names == sorted(p.name for p in (b / kind).glob("*"))
        assert all((a / kind / n).read_bytes() == (b / kind / n).read_bytes() for n in names)
    summaries = [json.loads((x / "summary.json").read_text()) for x in (a, b)]
    for s in summaries:
        s.pop("wall_s")
    assert summaries[0] == summaries[1]


def test_a_run_writes_what_others_build_on(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary = train(recipe("run.eval_every=3"), tmp_path / "run", quiet=True)
    run = tmp_path / "run"
    rows = metrics(run)
    assert [r["iteration"] for r in rows] == [1, 2, 3, 4, 5, 6]
    for key in ("reward/gym", "tokens/two", "loss/policy", "loss/ptx", "errors/timeout", "train/lr"):
        assert key in rows[0], key
    assert rows[0]["temperature/gym"] > rows[-1]["temperature/gym"]
    assert "eval/math/pass@1" in rows[2]
    assert rows[0]["loss/logratio_sq"] > 0, "the second mini-batch is off-policy"
    assert not any(key.startswith(("mismatch/", "correction/")) for key in rows[0])
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["schema_version"] == 1
    assert summary["eval_before"]["math"]["n"] == 4
    assert {"pass@1", "n", "tokens", "greedy"} <= summary["eval_after"]["gym"].keys()
    with gzip.open(run / "rollouts" / "000001.jsonl.gz", "rt") as file:
        rollouts = [json.loads(line) for line in file]
    assert len(rollouts) == 24
    assert {s["version"] for r in rollouts for s in r["segments"] if s["source"] == "policy"} == {0}
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["000004", "000006"]
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.chat_template
    loaded = {n: p for n, p in model.named_parameters()}
    assert all(torch.equal(t, loaded[n]) for n, t in load_file(run / "checkpoints/000006/weights.safetensors").items())


@pytest.mark.parametrize("setup_only", ["false", "true"])
def test_an_optional_env_that_cannot_run_here_is_left_out(
    recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str], setup_only: str
) -> None:
    nowhere = ["envs.nowhere.id=two_turn_env:Nowhere", f"envs.nowhere.args.setup_only={setup_only}"]
    with pytest.raises(UserError, match=r"^env nowhere: it needs a jail; .*envs.nowhere.optional=true"):
        train(recipe(*nowhere), tmp_path / "run", quiet=True)
    short = [*nowhere, "envs.nowhere.optional=true", "run.iterations=1", "run.eval_tasks=2"]
    summary = train(recipe(*short), tmp_path / "run", quiet=True)
    assert capsys.readouterr().err == "env nowhere is left out: it needs a jail\n"
    assert summary["left_out"] == {"nowhere": "it needs a jail"}
    assert "nowhere" not in summary["eval_after"]


def test_a_run_does_not_go_on_with_other_envs(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import two_turn_env

    def setup(self: Any) -> None:
        raise UnavailableError("no jail today")

    chosen = recipe("envs.two.optional=true", "run.iterations=2", "run.eval_tasks=0")
    train(chosen, tmp_path / "run", quiet=True)
    monkeypatch.setattr(two_turn_env.TwoTurn, "setup", setup)
    with pytest.raises(UserError, match="begun with the environments gym, two, math, and here are gym, math"):
        train(chosen, tmp_path / "run", resume=True, quiet=True)


def test_the_same_recipe_gives_the_same_run(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    short = recipe("run.iterations=2", "rollout.workers=1")
    train(short, tmp_path / "a", quiet=True)
    train(recipe("run.iterations=2", "rollout.workers=4"), tmp_path / "b", quiet=True)
    assert_identical(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    "extra",
    [
        ["model.dtype=bfloat16"],
        ["model.lora={rank: 4}", "optim.lr.start=0.03"],
        ["model.lora={rank: 4}", "model.dtype=bfloat16", "optim.name=muon", "trainer.gradient_checkpointing=true"],
    ],
    ids=["bfloat16", "lora", "bfloat16-lora-muon-checkpointing"],
)
def test_a_resumed_run_continues_identically(recipe: Callable[..., Recipe], tmp_path: Path, extra: list[str]) -> None:
    chosen = recipe("run.iterations=4", *extra)
    train(chosen, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "000004")
    train(chosen, tmp_path / "cut", resume=True, quiet=True)
    assert_identical(tmp_path / "whole", tmp_path / "cut")


def test_a_run_with_a_correction_tells_stale_tokens_from_wrong_ones(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The sampler is the trainer's own module, so tokens of the present weights differ by rounding; what was paused
    was said by other weights, and has weights of its own."""
    keys = ["trainer.correction=truncated", "trainer.correction_cap=1.05", "rollout.pause_share=0.6"]
    chosen = recipe("run.iterations=4", "run.eval_tasks=0", *keys)
    train(chosen, tmp_path / "whole", quiet=True)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "000004")
    train(chosen, tmp_path / "cut", resume=True, quiet=True)
    assert_identical(tmp_path / "whole", tmp_path / "cut")
    first, *later = metrics(tmp_path / "whole")
    assert first["mismatch/stale"] == first["correction/cut"] == 0
    assert first["correction/min"] == pytest.approx(1, abs=1e-4)
    assert all(0 < row["mismatch/max"] < 1e-4 for row in (first, *later) if row["mismatch/stale"] < 1)
    stale = [row for row in later if row["mismatch/stale"] > 0]
    assert any(row["correction/min"] < 0.99 and row["correction/cut"] > 0 for row in stale)


class Overstating(TorchSampler):
    """An engine with weights of its own, whose log-probs of rollouts are 0.3 too high."""

    def poll(self) -> list[Completion]:
        return [c if c.request_id == "canary" else self.raised(c) for c in super().poll()]

    def raised(self, completion: Completion) -> Completion:
        return replace(completion, logprobs=tuple(x + 0.3 for x in completion.logprobs))


@pytest.mark.parametrize("correction", ["none", "truncated"])
def test_what_an_engine_says_wrong_of_its_rollouts_is_in_the_metrics(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, correction: str
) -> None:
    def sampler_of(recipe: Recipe, policy: Policy, trainer: Any, machines: Any) -> TorchSampler:
        return Overstating(copy.deepcopy(policy.model), policy.chat.pad_id)

    monkeypatch.setattr("k2rl.setup.sampler_of", sampler_of)
    chosen = recipe("run.iterations=2", "run.eval_tasks=0", f"trainer.correction={correction}")
    train(chosen, tmp_path / "run", quiet=True)
    for row in metrics(tmp_path / "run"):
        assert row["mismatch/mean"] == pytest.approx(0.3, abs=1e-4)
        assert row["mismatch/max"] == pytest.approx(0.3, abs=1e-3)
        assert row["mismatch/over"] == 1
        assert row["mismatch/kl"] == pytest.approx(math.exp(-0.3) - 1 + 0.3, abs=1e-4)
        assert row["mismatch/stale"] == 0
        assert ("correction/mean" in row) == (correction == "truncated")
        if correction == "truncated":
            assert row["correction/min"] < row["correction/mean"] < math.exp(-0.3)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("k2", "grpo")])
def test_every_objective_trains(recipe: Callable[..., Recipe], tmp_path: Path, name: str) -> None:
    luck = ["envs.luck.id=two_turn_env:Luck", "envs.luck.weight=9"]
    short = [*luck, "run.iterations=1", "run.eval_tasks=0", "ptx.weight.start=0"]
    before = {n: t.clone() for n, t in load_file(Path(recipe().model.path) / "model.safetensors").items()}
    train(recipe(f"objective.name={name}", *short), tmp_path / "run", quiet=True)
    (row,) = metrics(tmp_path / "run")
    assert math.isfinite(row["loss/policy"])
    assert row["train/grad_norm"] > 0
    assert any(not torch.equal(t, before[n]) for n, t in weights(tmp_path / "run").items())


def test_an_iteration_whose_groups_are_all_even_trains_nothing_under_dapo(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    """A random model answers no question of math, and each answer costs the same."""
    alone = ["envs.gym.optional=true", "envs.gym.id=two_turn_env:Nowhere", "envs.gym.reward_range=null"]
    only = [*alone, "envs.two.optional=true", "envs.two.id=two_turn_env:Nowhere", "envs.math.budget.penalty=0"]
    chosen = recipe(*only, "objective.name=dapo", "run.iterations=2", "run.eval_tasks=0")
    train(chosen, tmp_path / "run", quiet=True)
    before = load_file(Path(chosen.model.path) / "model.safetensors")
    for row in metrics(tmp_path / "run"):
        assert row["train/groups"] == 0
        assert row["even_groups/math"] == 1
        assert "loss/policy" not in row
    assert all(torch.equal(t, before[n]) for n, t in weights(tmp_path / "run").items())


def measured_file(path: Path, lengths: list[int]) -> None:
    """As if some of math's tasks had been answered right, in so many tokens."""
    tasks = pool("math", make_env("math", {"level": 1, "instruction": ""}), "train", 3, 50)
    found = {t.id: {"n": 4, "correct": len(lengths), "correct_tokens": lengths} for t in tasks[::2]}
    path.write_text(json.dumps({"schema_version": 1, "envs": {"math": {"tasks": found}}}), encoding="utf-8")


def math_lengths(run_dir: Path, iteration: int) -> set[int]:
    with gzip.open(run_dir / "rollouts" / f"{iteration:06d}.jsonl.gz", "rt") as file:
        rollouts = [json.loads(line) for line in file]
    texts = [r["segments"] for r in rollouts if r["task"]["env"] == "math"]
    return {sum(len(s["ids"]) for s in segments) for segments in texts}


def test_estimated_budgets_cut_and_outlast_their_file(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    measured_file(tmp_path / "rates.json", [5, 3])
    keys = [f"envs.math.measured={tmp_path}/rates.json", "envs.math.budget.percentile=100", "run.iterations=4"]
    chosen = recipe(*keys, "run.eval_tasks=0", "rollout.pause_share=0.7", "envs.math.weight=9")
    train(chosen, tmp_path / "whole", quiet=True)
    assert {5, 10} <= math_lengths(tmp_path / "whole", 2), "tasks with an estimate are cut there, the others are not"
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "000004")
    measured_file(tmp_path / "rates.json", [2, 2])
    train(chosen, tmp_path / "cut", resume=True, quiet=True)
    assert_identical(tmp_path / "whole", tmp_path / "cut")


def test_toggle_runs_to_full_length_and_says_which_phase_it_is_in(
    recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    measured_file(tmp_path / "rates.json", [3])
    keys = [f"envs.math.measured={tmp_path}/rates.json", "envs.math.budget.mode=toggle"]
    short = ["envs.math.budget.toggle_every=1", "run.iterations=3", "run.eval_tasks=0", "envs.math.weight=9"]
    train(recipe(*keys, *short), tmp_path / "run", quiet=True)
    rows = metrics(tmp_path / "run")
    assert [r["toggle/math"] for r in rows] == [1.0, 0.0, 1.0]
    assert rows[0]["over_estimate/math"] > 0
    assert 10 in math_lengths(tmp_path / "run", 1)
    assert "toggle/two" not in rows[0]


def test_without_a_correct_answer_no_budget_can_be_estimated(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"envs\.math\.budget\.mode=toggle needs envs\.math\.measured: .*k2rl measure"):
        recipe("envs.math.budget.mode=toggle")
    measured_file(tmp_path / "rates.json", [])
    chosen = recipe("envs.math.budget.percentile=50", f"envs.math.measured={tmp_path}/rates.json")
    with pytest.raises(UserError, match="no correct answer to any of 50 tasks to estimate a budget from"):
        train(chosen, tmp_path / "run", quiet=True)


ORDERS = ["envs.math.order=easy_to_hard", "envs.gym.order=prioritised", "envs.two.order=prioritised"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [[], ["rollout.pause_share=0.7"], [*ORDERS, "rollout.pause_share=0.7"]],
    ids=["whole", "partial-rollouts", "curriculum"],
)
def test_kill_9_at_a_random_iteration_and_resume_is_identical(
    recipe: Callable[..., Recipe], tmp_path: Path, extra: list[str]
) -> None:
    chosen = recipe(*extra)
    save(chosen, tmp_path / "recipe.yaml")
    train(chosen, tmp_path / "whole", quiet=True)
    when = random.randint(1, 5)
    command = [sys.executable, "-m", "k2rl", "train", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "cut")]
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    log = tmp_path / "cut" / "metrics.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= when):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run([*command, "--resume", "--json"], env=environment, check=True, capture_output=True)
    assert_identical(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("error", [RunError("an engine is gone"), KeyboardInterrupt()])
def test_a_run_that_ends_between_checkpoints_leaves_one(
    recipe: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    """While rollouts are made the weights are still the last iteration's: nothing of it is lost."""
    seldom = ["run.checkpoint_every=6", "rollout.pause_share=0.7"]
    train(recipe(*seldom), tmp_path / "whole", quiet=True)
    collect = RolloutDriver.collect

    def failing(self: RolloutDriver, tasks: Any, iteration: int, *rest: Any, **named: Any) -> Any:
        groups = collect(self, tasks, iteration, *rest, **named)
        if iteration == 4:
            raise error
        return groups

    with monkeypatch.context() as patch:
        patch.setattr(RolloutDriver, "collect", failing)
        with pytest.raises(type(error)):
            train(recipe(*seldom), tmp_path / "ended", quiet=True)
    assert "saved iteration 3: go on with --resume" in capsys.readouterr().err
    train(recipe(*seldom), tmp_path / "ended", quiet=True, resume=True)
    assert_identical(tmp_path / "whole", tmp_path / "ended")


def test_a_run_that_ends_while_it_trains_leaves_what_was_there(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = TorchTrainer.step
    seen = []

    def failing(self: TorchTrainer, batch: Any, *, lr: float) -> dict[str, float]:
        seen.append(batch.first_of_iteration)
        if sum(seen) == 4:
            raise RunError("it diverged")
        return step(self, batch, lr=lr)

    monkeypatch.setattr(TorchTrainer, "step", failing)
    with pytest.raises(RunError, match="it diverged"):
        train(recipe(), tmp_path / "run", quiet=True)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000002"]


def test_a_task_that_hangs_is_counted_and_the_run_goes_on(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    import two_turn_env

    two_turn_env.Stalling.release.clear()
    stall = ["envs.stall.id=two_turn_env:Stalling", "run.patience_s=0.2", "run.stuck_s=0.5", "run.max_failure_rate=1"]
    train(recipe(*stall, "run.eval_tasks=0", "run.iterations=3", "envs.stall.weight=4"), tmp_path / "run", quiet=True)
    two_turn_env.Stalling.release.set()
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3
    hit = next(r for r in rows if r["errors/timeout"])
    assert hit["errors/timeout"] == hit["errors/slow_calls/stall"] == 4
    assert hit["errors/groups_dropped"] == 1
    assert 0 <= hit["success/stall"] <= 1
    calm = [r for r in rows if not r["errors/timeout"]]
    assert not any("errors/slow_calls/stall" in r for r in calm)


HANGING = """import time
from k2rl import SingleTurnEnv, Task, Verdict

class Hangs(SingleTurnEnv):
    budget = 8
    def tasks(self, split, seed):
        for n in range(9):
            yield Task(f"{split} {n}")
    def verify(self, task, response):
        while True:
            time.sleep(1e6)
"""


def test_an_env_that_hangs_for_ever_ends_the_process_with_its_name(
    in_folder: Callable[[str, str], Path], tiny_folder: Path
) -> None:
    in_folder("hangs.py", HANGING)
    in_folder("recipe.yaml", f"model: {{path: {tiny_folder}}}\nenvs: {{h: {{id: 'hangs.py:Hangs'}}}}\n")
    settings = ["run.eval_tasks=0", "run.patience_s=0.3", "run.stuck_s=1", "run.threads=1"]
    command = [sys.executable, "-m", "k2rl", "train", "recipe.yaml", "--run-dir", "out", *settings]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "waiting for the step of env h, task " in done.stderr
    assert "verify (" in done.stderr
    assert "gave up on the step of env h, task " in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("run failed: env h: 3 of its last 3 calls of step did not return within run.stuck_s=1 s")
    assert re.search(r"hangs.py:11\)", last)
    assert time.monotonic() - started < 60


def test_resume_refuses_what_is_not_its_own(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="nothing to resume"):
        train(recipe(), run, resume=True, quiet=True)
    train(recipe("run.iterations=4", "run.eval_tasks=0"), run, quiet=True)
    with pytest.raises(UserError, match="is not empty"):
        train(recipe("run.iterations=4", "run.eval_tasks=0"), run, quiet=True)
    with pytest.raises(UserError, match=r"differs from the one in .* in optim\.lr\.start"):
        train(recipe("run.iterations=4", "run.eval_tasks=0", "optim.lr.start=0.1"), run, resume=True, quiet=True)
    damaged = run / "checkpoints" / "000004" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-7] + b"garbage")
    with pytest.raises(UserError, match=r"weights.safetensors does not match its checksum\): delete .*000004"):
        train(recipe("run.iterations=4", "run.eval_tasks=0"), run, resume=True, quiet=True)
    shutil.rmtree(run / "checkpoints" / "000004")
    train(recipe("run.iterations=4", "run.eval_tasks=0"), run, resume=True, quiet=True)
    manifest = run / "checkpoints" / "000004" / "manifest.json"
    for change, message in (
        ({"schema_version": 99}, "has schema version 99, this k2rl reads 1"),
        ({"files": {}}, "is damaged .its manifest names nothing"),
    ):
        good = manifest.read_text()
        manifest.write_text(json.dumps(json.loads(good) | change))
        with pytest.raises(UserError, match=message):
            train(recipe("run.iterations=4", "run.eval_tasks=0"), run, resume=True, quiet=True)
        manifest.write_text(good)
    saved = (run / "recipe.yaml").read_text()
    assert saved.startswith("schema_version: 1\n")
    for text, message in (
        (saved.partition("\n")[2], "recipe.yaml has no schema_version"),
        (saved.replace("1", "99", 1), "recipe.yaml has schema version 99, this k2rl reads 1"),
    ):
        (run / "recipe.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            train(recipe("run.iterations=4", "run.eval_tasks=0"), run, resume=True, quiet=True)
    (run / "recipe.yaml").write_text(saved)
    state = run / "checkpoints" / "000004" / "state.json"
    state.unlink()
    with pytest.raises(UserError, match="is damaged"):
        train(recipe("run.iterations=4", "run.eval_tasks=0"), run, resume=True, quiet=True)


def test_two_runs_do_not_share_a_directory(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    from k2rl.runlog import RunLog

    log = RunLog.open(tmp_path / "run", recipe(), resume=False)
    with pytest.raises(UserError, match="another run is writing"):
        RunLog.open(tmp_path / "run", recipe(), resume=True)
    log.close()


def test_drafts_of_a_killed_run_do_not_hinder_its_resumption(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    short = recipe("run.iterations=2", "run.eval_tasks=0")
    train(short, tmp_path / "run", quiet=True)
    draft = tmp_path / "run" / "rollouts" / ".draft-000003.jsonl.gz"
    draft.write_bytes(b"half")
    train(short, tmp_path / "run", resume=True, quiet=True)
    assert not draft.exists()


def test_groups_that_start_anew_are_the_next_ones(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    """Neither replayable nor with snapshots: after a kill their tasks come first, and are counted."""
    from k2rl.loop import Run
    from k2rl.setup import build

    chosen = recipe("rollout.pause_share=0.2", "envs.two.args={replay: false}")
    parts = build(chosen)
    run = Run(chosen, parts)
    run.iterate(1)
    state = json.loads(json.dumps(run.state({"iteration": 1})))
    again = Run(chosen, build(chosen))
    again.restore(state)
    names = [t.id for t in again.restart]
    second = again.iterate(2)
    assert second.metrics["errors/groups_restarted"] == len(names)
    pending = {g.task.id for g in again.parts.driver.pending} | {g.task.id for g in second.ranked.groups}
    assert set(names) <= pending
    parts.close()
    again.parts.close()


CRITICS = ("critic/model.safetensors", "checkpoints/000004/critic.safetensors")


def judged(*overrides: str) -> Recipe:
    """nano on math and writing, with a critic that learns."""
    data = {
        "model": {"path": "nano"},
        "envs": {
            "math": {"id": "math", "args": {"level": 3, "instruction": ""}, "pool": 60, "budget": {"tokens": 40}},
            "writing": {"id": "k2rl_envs.writing_env:WritingEnv", "pool": 60, "budget": {"tokens": 40}},
        },
        "run": {"iterations": 4, "checkpoint_every": 2, "eval_tasks": 4, "threads": 1},
        "rollout": {"tasks": 6, "group_size": 6},
        "optim": {"lr": {"start": 0.0005}},
        "critic": {
            "enabled": True,
            "reference": True,
            "optim": {"name": "muon", "lr": {"start": 0.002}},
            "pairs": 8,
            "batch": 8,
            "window": 2,
            "trust": {"window": 2, "min_pairs": 4, "min_tasks": 2},
        },
    }
    return resolve(Recipe, data, overrides)


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["critic.recalibrate=joint", "critic.gate=false"],
        ["critic.weights=copy", "critic.tournament.kind=swiss", "trainer.gradient_checkpointing=true"],
        ["critic.weights=copy", "critic.recalibrate=none"],
    ],
    ids=["step", "joint", "copy", "frozen"],
)
def test_with_a_critic_a_resumed_run_continues_identically(tmp_path: Path, extra: list[str]) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    summary = train(judged(*extra), whole, quiet=True)
    train(judged(*extra), again, quiet=True)
    shutil.rmtree(again / "checkpoints" / "000004")
    shutil.rmtree(again / "model")
    train(judged(*extra), again, resume=True, quiet=True)
    assert_identical(whole, again)
    rows = metrics(whole)
    shown = {"critic/accuracy", "critic/gain", "critic/weight/writing", "reward/writing", "critic/comparisons"}
    assert shown <= rows[-1].keys()
    assert rows[0]["critic/gain"] == 0, "nothing is learned before the first measurement"
    assert summary["alarms"] == json.loads((again / "summary.json").read_text())["alarms"]
    assert list(summary["eval_after"]) == ["math"], "nothing passes in an open-ended environment"
    with gzip.open(whole / "critiques" / "000001.jsonl.gz", "rt") as file:
        critiques = [json.loads(line) for line in file]
    assert {c["env"] for c in critiques} == {"writing"}
    assert all(0 <= m["a_first"] <= 1 for c in critiques for m in c["matches"])
    assert (whole / "critic").exists() == ("critic.tournament.kind=swiss" in extra), "a copy that learns is saved"
    if (whole / "critic").exists():
        saved, kept = (load_file(whole / part) for part in CRITICS)
        assert all(torch.equal(saved[name], kept[f"weight.{name}"]) for name in saved)


def test_a_frozen_judge_stays_and_one_that_learns_moves(tmp_path: Path) -> None:
    from k2rl.loop import Run
    from k2rl.setup import build

    moved = {}
    for name, extra in {"frozen": ["critic.recalibrate=none"], "learning": []}.items():
        parts = build(judged("critic.weights=copy", *extra))
        assert parts.critic is not None
        model: Any = parts.critic.judge.sampler.model  # type: ignore[attr-defined]
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        run = Run(judged("critic.weights=copy", *extra), parts)
        run.iterate(1)
        moved[name] = any(not torch.equal(p, before[n]) for n, p in model.named_parameters())
        parts.close()
    assert moved == {"frozen": False, "learning": True}


def test_open_ended_needs_a_critic_and_a_critic_something_to_rank(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"critic.enabled is false: .*envs.writing=null"):
        train(judged("critic.enabled=false"), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="no environment of the recipe is open-ended"):
        train(judged("envs.writing=null"), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"env haiku is open-ended and says nothing .* set rubrics in its class"):
        train(judged("envs.haiku.id=two_turn_env:Haiku"), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"rubrics is the text 'clarity': give a tuple"):
        train(judged("envs.haiku={id: two_turn_env:Haiku, args: {rubrics: clarity}}"), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match=r"env writing: no task fits .*the shortest prompt with what a judge is told"):
        train(judged("envs.writing.budget.tokens=500"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    train(judged("critic.enabled=false", "envs.writing=null", "run.iterations=1"), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run" / "critiques").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["envs.math.id=two_turn_env:Empty", "envs.math.args={}"], "env math yields no train tasks"),
        (
            ["envs.math.id=two_turn_env:Overlapping", "envs.math.args={}"],
            "tasks are in both the train and the test split",
        ),
        (["envs.gym.reward_range=null"], "declare envs.gym.reward_range"),
        (["envs.math.budget.tokens=4000"], "no task fits the model's context of 256"),
        (["ptx.data=missing.jsonl"], "no file missing.jsonl"),
        (["model.path=./nowhere"], "no config.json there"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    recipe: Callable[..., Recipe], tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train(recipe(*overrides), tmp_path / "run", quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_template_that_rewrites_history_is_refused_for_multi_turn_envs_only(
    recipe: Callable[..., Recipe], tmp_path: Path, tiny_folder: Path
) -> None:
    rewriting = tmp_path / "rewriting"
    shutil.copytree(tiny_folder, rewriting)
    (rewriting / "chat_template.jinja").write_text(
        "{% for m in messages %}<|{{ m['role'] }}|>"
        "{{ m['content'] if loop.last else m['content'][:3] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(UserError, match="rewrites earlier turns"):
        train(recipe(f"model.path={rewriting}"), tmp_path / "run", quiet=True)


def test_a_full_disk_ends_the_run_and_leaves_a_whole_checkpoint(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel itself refuses: the file size limit makes the second checkpoint's weights too large to write."""
    import resource

    chosen = recipe("run.eval_tasks=0", "run.checkpoint_every=1")
    from k2rl import checkpoint

    original, calls = checkpoint.save, 0

    def failing(*args: Any) -> Path:
        nonlocal calls
        calls += 1
        if calls == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        try:
            return original(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    monkeypatch.setattr(checkpoint, "save", failing)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with pytest.raises(RunError, match="free some space, then continue with --resume"):
        train(chosen, tmp_path / "cut", quiet=True)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "cut" / "checkpoints").glob("[0-9]*")] == ["000001"]
    train(chosen, tmp_path / "cut", resume=True, quiet=True)
    train(chosen, tmp_path / "whole", quiet=True)
    assert_identical(tmp_path / "whole", tmp_path / "cut")


def test_too_little_space_is_said_before_anything_starts(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match=r"0 MB free, and the run's checkpoints need"):
        train(recipe(), tmp_path / "run", quiet=True)


def test_an_unwritable_run_directory(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="can't be written"):
        train(recipe(), tmp_path / "file" / "run", quiet=True)
