"""`k2rl measure`: the training tasks of a recipe, sampled; interrupted and taken up; then trained on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from k2rl import measure as measuring
from k2rl.errors import UserError
from k2rl.loop import train
from k2rl.measure import measure
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve
from k2rl.rollout import RolloutDriver


@pytest.fixture
def recipe(tiny_folder: Path) -> Callable[..., Recipe]:
    """An env of which a random model gets something right now and then."""

    def make(*overrides: str) -> Recipe:
        data = {
            "seed": 3,
            "model": {"path": str(tiny_folder)},
            "envs": {
                "luck": {"id": "two_turn_env:Luck", "pool": 30, "temperature": {"start": 1.2, "end": 0.9}},
            },
            "run": {"iterations": 3, "checkpoint_every": 2, "eval_tasks": 2, "threads": 1},
            "rollout": {"tasks": 4, "group_size": 4, "slots": 16},
        }
        return resolve(Recipe, data, overrides)

    return make


def test_a_measured_file_filters_and_orders_a_run(
    recipe: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "rates.json"
    report = measure(recipe(), out, samples=6, quiet=True)
    assert report == json.loads(out.read_text())
    assert not list(tmp_path.glob("*.partial"))
    luck = report["envs"]["luck"]
    assert luck["n"] == len(luck["tasks"]) == 30
    rates = [t["correct"] / t["n"] for t in luck["tasks"].values()]
    assert luck["between"] == 30 * (1 - luck["never"] - luck["always"]) == sum(0 < r < 1 for r in rates)
    assert luck["pass@1"] == pytest.approx(sum(rates) / 30)
    assert all(len(t["correct_tokens"]) == t["correct"] for t in luck["tasks"].values())
    inside = sum(0.2 <= r <= 0.8 for r in rates)
    assert 0 < inside < 30
    assert measuring.table(report).row_count == 1

    keys = [f"envs.luck.measured={out}", "envs.luck.pass_rate=[0.2,0.8]", "envs.luck.order=prioritised"]
    train(recipe(*keys), tmp_path / "run", quiet=True)
    said = " ".join(capsys.readouterr().err.split())
    assert f"env luck: {30 - inside} of 30 training tasks left out by pass_rate=[0.2, 0.8]: " in said
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {(r["curriculum/luck/pool"], r["curriculum/luck/left_out"]) for r in rows} == {(inside, 30 - inside)}
    assert all(0.2 <= r["curriculum/luck/expected"] <= 0.8 for r in rows[:1])
    assert [r["curriculum/luck/seen"] for r in rows] == sorted(r["curriculum/luck/seen"] for r in rows)


def test_an_interrupted_measurement_goes_on_to_the_same_report(
    recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "_CHUNK", 10)
    whole = measure(recipe(), tmp_path / "whole.json", samples=3, quiet=True)
    collect, asked = RolloutDriver.collect, 0

    def cut(self: RolloutDriver, tasks: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal asked
        if asked == 20:
            raise KeyboardInterrupt
        asked += len(tasks)
        return collect(self, tasks, *args, **kwargs)

    monkeypatch.setattr(RolloutDriver, "collect", cut)
    with pytest.raises(KeyboardInterrupt):
        measure(recipe(), tmp_path / "cut.json", samples=3, quiet=True)
    assert sorted(p.name for p in tmp_path.glob("cut*")) == ["cut.json.partial"]
    asked = 0
    with pytest.raises(UserError, match="was begun with another model, seed, budget, temperature or number of samples"):
        measure(recipe("seed=4"), tmp_path / "cut.json", samples=3, quiet=True)
    asked = 10
    assert measure(recipe(), tmp_path / "cut.json", samples=3, quiet=True) == whole
    (tmp_path / "new.json.partial").write_text("{}")
    with pytest.raises(UserError, match="is damaged: delete it to measure from the start"):
        measure(recipe(), tmp_path / "new.json", samples=3, quiet=True)


def test_where_it_writes(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    named = recipe(f"envs.luck.measured={tmp_path}/a.json", "envs.luck.order=prioritised")
    assert measuring.place(named, None) == tmp_path / "a.json"
    assert measuring.place(named, tmp_path / "b.json") == tmp_path / "b.json"
    with pytest.raises(UserError, match=r"measured names none: give --out FILE"):
        measuring.place(recipe(), None)
    with pytest.raises(UserError, match="give a file in a folder that exists"):
        measuring.place(recipe(), tmp_path / "no" / "a.json")
    (tmp_path / "b.json").write_text("mine")
    with pytest.raises(UserError, match=r"b\.json exists: choose another --out, or add --force"):
        measure(recipe(), tmp_path / "b.json", quiet=True)
    assert (tmp_path / "b.json").read_text() == "mine"


def test_a_run_whose_rates_changed_is_not_resumed(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    out = tmp_path / "rates.json"
    report = measure(recipe(), out, samples=4, quiet=True)
    chosen = recipe(f"envs.luck.measured={out}", "envs.luck.order=prioritised", "run.eval_tasks=0")
    train(chosen, tmp_path / "run", quiet=True)
    for task in report["envs"]["luck"]["tasks"].values():
        task["correct"] = 1
    out.write_text(json.dumps(report))
    with pytest.raises(UserError, match="env luck: its training tasks or their measured pass rates are not those"):
        train(chosen, tmp_path / "run", resume=True, quiet=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["envs.luck.pass_rate=[0.1,0.9]"],
            r"pass_rate needs envs\.luck\.measured: .*`k2rl measure RECIPE --out FILE`",
        ),
        (["envs.luck.measured=x.json"], "measured has no effect by itself"),
        (["envs.luck.measured=x.json", "envs.luck.pass_rate=[0.9,0.1]"], r"give \[lowest, highest\], each in \[0, 1\]"),
        (["envs.luck.measured=x.json", "envs.luck.pass_rate=[0.1]"], r"give \[lowest, highest\]"),
        (["envs.luck.order=hard"], "order is 'hard': this version has uniform, prioritised, easy_to_hard"),
    ],
)
def test_keys_that_make_no_sense(recipe: Callable[..., Recipe], overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe(*overrides)


def test_where_nothing_is_right_there_is_nothing_to_measure(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    out = tmp_path / "rates.json"
    with pytest.raises(UserError, match="nothing to measure: w is open-ended"):
        measure(recipe("envs.luck=null", "envs.w.id=writing"), out, quiet=True)
    assert not out.exists()


def test_a_file_that_is_not_there_is_said_before_the_run_begins(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"envs\.luck\.measured: no file .*rates\.json: make it with `k2rl measure RECIPE"
    ):
        train(
            recipe(f"envs.luck.measured={tmp_path}/rates.json", "envs.luck.order=prioritised"),
            tmp_path / "run",
            quiet=True,
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_command_line_measures_and_trains(
    tiny_folder: Path, in_folder: Callable[[str, str], Path], tmp_path: Path
) -> None:
    luck = Path(__file__).parent / "two_turn_env.py"
    in_folder(
        "recipe.yaml",
        f"model: {{path: {tiny_folder}}}\n"
        f"envs: {{luck: {{id: '{luck}:Luck', pool: 20, measured: rates.json, order: easy_to_hard}}}}\n"
        "run: {iterations: 1, eval_tasks: 0}\nrollout: {tasks: 2, group_size: 2}\n",
    )
    command = [sys.executable, "-m", "k2rl"]
    done = subprocess.run([*command, "measure", "recipe.yaml", "--samples", "3"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "wrote rates.json, which the recipe names")
    subprocess.run([*command, "train", "recipe.yaml", "--run-dir", "run", "--json"], check=True, capture_output=True)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert (row["curriculum/luck/pool"], row["curriculum/luck/reach"]) == (20, 0.2)
