"""pass@k, intervals, and what a report says."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from k2rl.envpool import EnvPool
from k2rl.errors import UserError
from k2rl.eval_policy import bootstrap, evaluate, held_out, measure, pass_at_k, table
from k2rl.models import load_policy
from k2rl.recipe import EnvSpec, ModelConfig, RunConfig
from k2rl.samplers.scripted import ScriptedSampler


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (4, 4, 2), (7, 3, 5)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_one(n: int, c: int, k: int) -> None:
    subsets = list(combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(s) < c for s in subsets) / len(subsets))


def test_bootstrap_covers_like_a_normal_interval() -> None:
    data = np.random.default_rng(0).random(400) < 0.3
    low, high = bootstrap([float(x) for x in data])
    half = 1.96 * np.sqrt(data.mean() * (1 - data.mean()) / 400)
    assert low == pytest.approx(data.mean() - half, abs=0.01)
    assert high == pytest.approx(data.mean() + half, abs=0.01)


def test_a_report_is_the_same_every_time_and_prints(tiny_folder: Path) -> None:
    envs = {"gym": EnvSpec(id="two_turn_env:PlainGym", reward_range=[0, 4]), "two": EnvSpec(id="two_turn_env:TwoTurn")}
    for spec in envs.values():
        spec.budget.tokens = 8
    model = ModelConfig(path=str(tiny_folder))
    reports = [evaluate(model, envs, n=6, k=2, samples=3, quiet=True, slots=s) for s in (4, 64)]
    assert reports[0] == reports[1]
    assert reports[0]["envs"]["two"]["n"] == 6
    assert set(reports[0]["envs"]["gym"]["ci95"]) == {"pass@1", "pass@2"}
    assert table(reports[0]).row_count == 2


def test_an_environment_that_overflows_the_context_is_not_scored(tiny_folder: Path) -> None:
    envs = EnvPool({"two": EnvSpec(id="two_turn_env:TwoTurn")}, workers=1)
    policy = load_policy(ModelConfig(path=str(tiny_folder)))
    tasks = held_out(policy, envs, 0, 3)
    sampler = ScriptedSampler(lambda request, index: (*policy.chat.encode_untrusted("1"), policy.chat.end_id))
    small = replace(policy, context=40)
    report = measure(sampler, small, envs, tasks, samples=1, k=1, temperature=1.0, seed=0)
    assert (report["two"]["no_verdict"], report["two"]["n"]) == (3, 0)
    envs.close()


def test_an_evaluation_does_not_hang(tiny_folder: Path) -> None:
    import two_turn_env

    two_turn_env.Stalling.release.clear()
    envs = {"s": EnvSpec(id="two_turn_env:Stalling")}
    run = RunConfig(patience_s=0.2, stuck_s=0.5)
    report = evaluate(ModelConfig(path=str(tiny_folder)), envs, samples=2, temperature=1, quiet=True, run=run)
    assert (report["envs"]["s"]["n"], report["envs"]["s"]["no_verdict"]) == (3, 2)
    two_turn_env.Stalling.release.set()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 5, "samples": 2}, "pass@5 needs at least 5 samples"),
        ({"n": 0}, "must be 1 or more"),
        ({"temperature": 0.0, "samples": 3}, "greedy decoding gives the same answer"),
        ({"temperature": -1.0}, "must be 0 .greedy. or more"),
    ],
)
def test_counts_that_make_no_sense(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(ModelConfig(path="nano"), {"m": EnvSpec(id="math")}, quiet=True, **settings)  # type: ignore[arg-type]
