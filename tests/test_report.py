"""What a report is made of: charts, rollouts, and what it says of runs that did not end well."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from reported import HOSTILE, metrics, rollout, run_folder, write_rows
from rich.console import Console
from typer.testing import CliRunner

from k2rl import assets
from k2rl.cli import app
from k2rl.errors import UserError
from k2rl.intervals import wilson
from k2rl.models import load_policy
from k2rl.recipe import ModelConfig
from k2rl.report import browsing, charts, page, terminal
from k2rl.report.reading import RunFiles
from k2rl.types import Task


def drawn(run: Path) -> dict[str, dict[str, Any]]:
    return {chart["title"]: chart for chart in charts.charts([RunFiles.of(run)])}


def data_of(text: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def judged(p: float, lengths: tuple[int, int] = (5, 3)) -> dict[str, Any]:
    known = {"env": "writing", "source": "degradation", "kind": "shuffled", "task_id": "t", "reference": None}
    return {**known, "lengths": list(lengths), "judgement": [p, p]}


# --- charts ---------------------------------------------------------------------------------------------


def test_charts_are_those_that_have_something_in_them(tmp_path: Path) -> None:
    found = drawn(run_folder(tmp_path / "run"))
    assert [s["name"] for s in found["math: training"]["series"]] == ["reward", "right"]
    assert found["math: training"]["series"][1]["y"] == [0.6] * 3
    budget = found["math: length against budget"]["series"][1]
    assert (budget["name"], budget["x"]) == ("budget", [1.0, 3.0])
    assert [s["name"] for s in found["errors by kind"]["series"]] == ["timeout"]
    assert found["where an iteration's time goes"]["kind"] == "bars"
    assert not any(chart["section"] == "Judge" for chart in found.values())


def test_a_long_run_is_thinned_by_means(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", 2)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(metrics(n)) + "\n" for n in range(1, 1002)))
    found = drawn(folder)
    loss = found["loss/policy"]["series"][0]
    assert len(loss["x"]) == 334 <= charts.POINTS
    assert loss["x"][0] == 2
    assert loss["y"][0] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert all(len(s["x"]) <= charts.BARS for s in found["where an iteration's time goes"]["series"])


def test_held_out_results_have_intervals(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    results = {"eval_before": {"math": {"pass@1": 0.3, "n": 50}}, "eval_after": {"math": {"pass@1": 0.4, "n": 50}}}
    (folder / "summary.json").write_text(json.dumps(results))
    (series,) = drawn(folder)["math: held-out pass@1"]["series"]
    assert (series["x"], series["y"]) == ([0.0, 3.0], [0.3, 0.4])
    assert [series["low"][0], series["high"][0]] == wilson(0.3, 50)


def test_reliability_and_length_bias_by_hand(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    early = [judged(0.9), judged(0.92), judged(0.06, (3, 5)), judged(0.5)]
    for iteration, rows in ((1, early), (2, [judged(0.7)]), (3, [judged(0.3, (4, 4)), judged(0.7)])):
        write_rows(folder, "judged", iteration, rows)
    found = drawn(folder)
    ideal, first, last = found["reliability: how often it is right when it is so sure"]["series"]
    assert ideal["name"] == "perfectly calibrated"
    # Confidences 0.5 (a tie, half right), 0.9, 0.92 and 0.94 (wrong) fall into three bins.
    assert first["x"] == pytest.approx([0.5, (0.9 + 0.92 + 0.94) / 3])
    assert first["y"] == pytest.approx([0.5, 2 / 3])
    assert (last["x"], last["y"]) == (pytest.approx([0.7]), [0.5])
    # Longer chosen less longer better: 0, 0, and in the pair whose shorter one is better the longer was chosen (+1),
    # the tie counts half (-0.5), then 0 and 0; equal lengths say nothing.
    (bias,) = found["length bias"]["series"]
    assert (bias["name"], bias["x"]) == ("writing/degradation", [3.0])
    assert bias["y"] == pytest.approx([(0 + 0 + 1 - 0.5 + 0 + 0) / 6])


# --- rollouts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["12*3=36 36+4=40", "naïve 語 😀 done", "  two  spaces\n\ttab"])
def test_tokens_have_the_text_they_add(text: str) -> None:
    chat = load_policy(ModelConfig(path=str(assets.NANO))).chat
    ids = chat.tokenizer(text, add_special_tokens=False).input_ids

    def decode(some: Any) -> str:
        return str(chat.tokenizer.decode(list(some), clean_up_tokenization_spaces=False))

    pieces = list(browsing.pieces_of(ids, decode))
    assert sum(count for count, _ in pieces) == len(ids)
    assert "".join(piece for _, piece in pieces) == decode(ids)
    assert not any("\ufffd" in piece for _, piece in pieces if "\ufffd" not in text)


def test_iterations_are_spread_over_a_run() -> None:
    assert browsing.spread(range(1, 6), 24) == [1, 2, 3, 4, 5]
    found = browsing.spread(range(1, 1001), 24)
    assert (len(found), found[0], found[-1]) == (24, 1, 1000)


def test_a_sample_keeps_to_its_size_and_has_all_of_a_run(tmp_path: Path) -> None:
    run = RunFiles.of(run_folder(tmp_path / "run", 100, groups=6, members=4))
    found = browsing.sample(run, 60_000, None)
    assert len(json.dumps(found)) <= 60_000
    assert len({group["iteration"] for group in found}) == browsing.ITERATIONS
    assert all(len(group["rollouts"]) == 4 for group in found), "whole groups"


def test_a_task_that_was_given_twice_is_two_groups(tmp_path: Path) -> None:
    folder, task = run_folder(tmp_path / "run", 1), Task("twice", env="math")
    write_rows(folder, "rollouts", 1, [rollout(task, k) for k in (0, 1, 0, 1)])
    groups = browsing.group_rows(RunFiles.of(folder), 1)["math"]
    assert [[r["k"] for r in group["rollouts"]] for group in groups] == [[0, 1], [0, 1]]


# --- pages ----------------------------------------------------------------------------------------------


def test_what_others_wrote_is_data_and_nothing_else(tmp_path: Path) -> None:
    run = run_folder(tmp_path / HOSTILE.replace("/", "-").replace("\udcff", ""), text=HOSTILE)
    text = page.render([RunFiles.of(run)])
    assert text.isascii()
    assert "window.hacked = 1</script>" not in text
    assert text.count("<script") == 3, "the page's own"
    data = data_of(text)
    assert data["groups"][0]["prompt"][0]["content"] == f"{HOSTILE} of 0 in 1"
    assert not re.search(r"(src|href)=.?https?://|sourceMappingURL", text), "it loads nothing"


def test_a_text_of_a_megabyte_is_cut_in_its_middle(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", 1, text="x" * 1_000_000)
    text = page.render([RunFiles.of(run)])
    assert len(text) < 600_000
    assert "characters are not shown" in data_of(text)["groups"][0]["prompt"][0]["content"]


def test_a_run_that_was_killed_while_it_wrote_is_shown(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "reward/ma')
    (folder / "rollouts" / ".draft-000004.jsonl.gz").write_bytes(b"half")
    about = data_of(page.render([RunFiles.of(folder)]))["runs"][0]
    assert (about["state"], about["iterations"], about["seconds"]) == ("stopped", 3, 9)


def test_runs_are_compared_in_the_same_charts(tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, n) for name, n in (("a", 3), ("b", 5))]
    data = data_of(page.render([RunFiles.of(folder) for folder in folders]))
    (training,) = (chart for chart in data["charts"] if chart["title"] == "math: training")
    assert [(s["name"], s["run"], len(s["x"])) for s in training["series"]] == [
        ("reward", 0, 3),
        ("right", 0, 3),
        ("reward", 1, 5),
        ("right", 1, 5),
    ]
    assert {group["run"] for group in data["groups"]} == {0, 1}


def test_where_there_is_nothing_to_show_it_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run in .*give the --run-dir"):
        RunFiles.of(tmp_path)
    folder = run_folder(tmp_path / "run", 1)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no iteration of this run was finished"):
        page.write([folder], tmp_path / "report.html")
    assert not list(tmp_path.glob("*.html"))
    run_folder(tmp_path / "other", 1)
    with pytest.raises(UserError, match="can't be written"):
        page.write([tmp_path / "other"], tmp_path / "nowhere" / "report.html")


def test_a_page_that_can_not_be_made_ends_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder(tmp_path / "run", 1)
    (folder / "report.html").mkdir()
    page.at_the_end(folder, quiet=True)
    assert "no report: " in " ".join(capsys.readouterr().err.split())


# --- the terminal ---------------------------------------------------------------------------------------


def test_rollouts_are_found_by_what_they_are(tmp_path: Path) -> None:
    run = RunFiles.of(run_folder(tmp_path / "run"))

    def count(**wanted: Any) -> int:
        return len(list(terminal.found(run, terminal.Wanted(**wanted))))

    assert count() == 12
    assert count(env="math", iteration=2) == 4
    assert count(env="code") == 0
    assert count(status="wrong") == count(most=0.5) == 6
    assert count(least=0.5) == count(status="correct") == 6
    assert count(text="12*3") == 12
    assert count(text="nobody says this") == 0
    assert next(terminal.found(run, terminal.Wanted()))["iteration"] == 3, "the last first"


def test_a_terminal_is_sent_nothing_it_would_obey(tmp_path: Path) -> None:
    run = RunFiles.of(run_folder(tmp_path / "run", 1, text=f"[bold]{HOSTILE}"))
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        console = Console(file=file, force_terminal=False, soft_wrap=True)
        for one in terminal.found(run, terminal.Wanted(), browsing.decoder(run)):
            terminal.print_rollout(console, one)
    told = (tmp_path / "out").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", told)
    assert r"\x1b[31mred\x07 \u202eturned \udcff" in told
    assert "[bold]" in told


def test_the_command_line(tmp_path: Path) -> None:
    runner, run = CliRunner(), str(run_folder(tmp_path / "run"))
    done = runner.invoke(app, ["report", run])
    assert done.output.split() == [f"{run}/report.html"]
    assert (tmp_path / "run" / "report.html").stat().st_size > 200_000
    told = runner.invoke(app, ["report", run, "--rollouts", "--wrong", "--limit", "2"]).output
    assert told.count("wrong") >= 2
    assert "2 rollouts; more with --limit 4" in told
    rows = json.loads(runner.invoke(app, ["report", run, "--rollouts", "--json"]).stdout)
    assert len(rows) == 10
    for wrong, why in (
        (["report", run, "--env", "math"], "--env is for rollouts: add --rollouts"),
        (["report", run, "--rollouts", "--env", "maths"], "--env maths: this run has math"),
        (["report", run, run, "--rollouts"], "--rollouts shows one run"),
    ):
        assert why in str(runner.invoke(app, wrong).exception)
