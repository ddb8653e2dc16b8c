"""`k2rl eval-rewards judge`: rows of every form, recorded verdicts, reward models, what is counted and written."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import Cli
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from k2rl import assets, eval_judge
from k2rl.chat import Chat
from k2rl.critic.records import Judgement
from k2rl.errors import UserError
from k2rl.eval_judge import Recorded, evaluate
from k2rl.judges import CausalJudge, ScalarJudge, load, preference
from k2rl.preferences import Contest, contests, read
from k2rl.recipe import ModelConfig

Write = Callable[[str, str], Path]
JUDGE = ("eval-rewards", "judge", "--data", "pairs.jsonl", "--json", "out.json")
SAID = ("--recorded", "said.jsonl")


@pytest.fixture
def k2rl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(monkeypatch, capsys)


def lines(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pair(name: str, a: str, b: str, label: object, **more: object) -> dict[str, Any]:
    return {"id": name, "prompt": f"prompt {name}", "response_a": a, "response_b": b, "label": label, **more}


PAIRS = (
    pair("1", "a long one", "short", "A", subset="x"),
    pair("2", "short", "a long one", "A", subset="x"),
    pair("3", "same", "same", "B", subset="x"),
    pair("4", "a long one", "short", "B", subset="y"),
    pair("5", "a long one", "short", "B", subset="y"),
)
#            first shown is better, in order AB, in order BA  ->  P(A): with A first, with B first
VERDICTS = (
    ("1", 0.9, 0.4),  #   0.9  0.6   0.75  right
    ("2", 0.2, 0.6),  #   0.2  0.4   0.3   wrong; chooses the longer
    ("3", "second", "first"),  # 0  0   0.0   right
    ("4", "first", "first"),  #  1  0   0.5   tie
    ("5", "tie", 0.3),  # 0.5  0.7   0.6   wrong; chooses the longer
)


def verdict_lines(verdicts: Sequence[tuple[str, object, object]]) -> list[dict[str, Any]]:
    def row(name: str, order: str, said: object) -> dict[str, Any]:
        return {"id": name, "order": order, ("p_first" if isinstance(said, float) else "verdict"): said}

    return [row(name, order, said) for name, ab, ba in verdicts for order, said in (("AB", ab), ("BA", ba))]


def test_recorded_verdicts_by_hand(in_folder: Write, k2rl: Cli) -> None:
    in_folder("pairs.jsonl", lines(*PAIRS))
    in_folder("said.jsonl", lines(*reversed(verdict_lines(VERDICTS))))
    code, out, err = k2rl(*JUDGE, *SAID, "--rows-out", "rows.jsonl")
    assert (code, err) == (0, "")
    assert "accuracy_both_orders" in out
    report = json.loads(Path("out.json").read_text())
    assert report["n"] == 5
    assert report["accuracy"] == pytest.approx(2.5 / 5)
    assert report["accuracy_both_orders"] == pytest.approx(2 / 5)  # 1 and 3
    assert report["order_agreement"] == pytest.approx(3 / 5)  # 1, 2 and 3
    assert report["tie_rate"] == pytest.approx(1 / 5)
    assert report["brier"] == pytest.approx((0.25**2 + 0.7**2 + 0 + 0.5**2 + 0.6**2) / 5)
    # bins: 0.75 right, 0.7 wrong (both in their own), 1.0 right, 0.5 half, 0.6 wrong
    assert report["ece"] == pytest.approx((0.25 + 0.7 + 0 + 0 + 0.6) / 5)
    # labelled A: 0.75, 0.3; labelled B: 0.0, 0.5, 0.6
    assert report["auroc"] == pytest.approx((3 + 1) / 6)
    # unequal: 1, 2, 4, 5: longer chosen 1, 2, 5 and half of 4; labelled longer: 1
    assert report["length_bias"] == pytest.approx(3.5 / 4 - 1 / 4)
    assert report["first_share"] == pytest.approx((1 + 0 + 0 + 1 + 0 + 1 + 1 + 1 + 0.5 + 0) / 10)
    assert report["no_verdict"] == report["shortened"] == 0
    assert report["subsets"]["x"]["accuracy"] == pytest.approx(2 / 3)
    assert report["subsets"]["y"] == {**report["subsets"]["y"], "n": 2, "accuracy": 0.25}
    assert report["best_of_n"] is None
    assert sum(b["n"] for b in report["reliability"]) == 5
    assert sum(g["n"] for g in report["lengths"]) == 4
    assert sum(g["n"] * g["chosen_longer"] for g in report["lengths"]) == pytest.approx(3.5)
    for name, bounds in report["ci95"].items():
        assert bounds[0] <= report[name] <= bounds[1], name
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert rows[1] == {
        **{"id": "2", "subset": "x", "swapped": False, "label": "A"},
        **{"p": pytest.approx(0.3), "a_first": 0.2, "b_first": pytest.approx(0.4)},
    }


def test_an_unreadable_verdict_is_counted_and_in_no_metric(in_folder: Write) -> None:
    data = in_folder("pairs.jsonl", lines(*PAIRS))
    said = in_folder("said.jsonl", lines(*verdict_lines([*VERDICTS[:4], ("5", None, 0.3)])))
    report, judged = evaluate(data, Recorded(said), name="said")
    assert (report["n"], report["no_verdict"], report["accuracy"]) == (4, 1, pytest.approx(2.5 / 4))
    assert report["subsets"]["y"]["no_verdict"] == 1
    assert judged[4].to_json()["p"] is None
    nothing = in_folder("null.jsonl", lines(*verdict_lines([(name, None, None) for name, _, _ in VERDICTS])))
    report, _ = evaluate(data, Recorded(nothing), name="null")
    assert (report["n"], report["no_verdict"], report["accuracy"], report["temperature"]) == (0, 5, None, None)
    assert set(report["ci95"].values()) == {None}
    eval_judge.tables(report)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"id": "9", "order": "AB", "p_first": 0.5}, "line 11: no pair has the id '9'"),
        ({"id": "1", "order": "AB", "p_first": 0.5}, "line 11: '1' in order AB is already on line 1"),
        ({"id": "1", "order": "A", "p_first": 0.5}, "line 11: a verdict has an id and an order, AB or BA"),
        ({"order": "AB", "p_first": 0.5}, "line 11: a verdict has an id and an order"),
        ({"id": "1", "order": "AB"}, "line 11: a verdict has p_first or verdict, one of them"),
        ({"id": "1", "order": "AB", "p_first": 0.5, "verdict": "tie"}, "line 11: a verdict has p_first or verdict"),
        ({"id": "1", "order": "AB", "p_first": 1.5}, "line 11: p_first must be a number from 0 to 1, got 1.5"),
        ({"id": "1", "order": "AB", "p_first": math.nan}, "line 11: p_first must be a number from 0 to 1, got nan"),
        ({"id": "1", "order": "AB", "p_first": True}, "line 11: p_first must be a number"),
        ({"id": "1", "order": "AB", "p_first": None}, "line 11: p_first must be a number"),
        ({"id": "1", "order": "AB", "verdict": "A"}, "line 11: verdict must be first, second, tie or null, got 'A'"),
        ([1], "line 11: a row must be an object"),
        ("not JSON", "line 11: not JSON"),
    ],
)
def test_recorded_lines_that_are_none(said: Any, says: str, in_folder: Write, k2rl: Cli) -> None:
    in_folder("pairs.jsonl", lines(*PAIRS))
    bad = said if isinstance(said, str) else json.dumps(said)
    in_folder("said.jsonl", lines(*verdict_lines(VERDICTS)) + bad + "\n")
    code, out, err = k2rl(*JUDGE, *SAID)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"said.jsonl, {says}" in err
    assert not Path("out.json").exists()


def test_a_missing_order_is_named(in_folder: Write) -> None:
    data, said = in_folder("pairs.jsonl", lines(*PAIRS)), verdict_lines(VERDICTS)
    with pytest.raises(UserError, match=r"one\.jsonl: '2' lacks order BA: line 3 has only the other order"):
        evaluate(data, Recorded(in_folder("one.jsonl", lines(*said[:3], *said[4:]))), name="")
    with pytest.raises(
        UserError, match=r"no\.jsonl: '5' lacks order AB: no line is about it; it is .*pairs.jsonl, line 5"
    ):
        evaluate(data, Recorded(in_folder("no.jsonl", lines(*said[:8]))), name="")
    twice = in_folder("twice.jsonl", lines(PAIRS[0], PAIRS[0]))
    with pytest.raises(UserError, match=r"line 2: the id '1' is also that of .*line 1"):
        evaluate(twice, Recorded(in_folder("some.jsonl", lines(*said[:2]))), name="")


# --- forms of rows ---------------------------------------------------------------------------------------------


def test_forms_of_rows(in_folder: Write) -> None:
    llmbar = {"input": "p", "output_1": "one", "output_2": "two", "label": 2}
    bench = {"pair_id": "j", "question": "p", "response_A": "one", "response_B": "two", "label": "A>B", "source": "s"}
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes?"}]
    rows = read(in_folder("rows.json", json.dumps([llmbar, bench, pair("7", "one", "two", "B", category="c")])))
    assert [r.responses for r in rows] == [("one", "two")] * 3
    assert [(r.id, r.right[0], r.subset) for r in rows] == [("1", False, None), ("j", True, "s"), ("7", False, "c")]
    (row,) = read(in_folder("talk.jsonl", lines({"prompt": talk, "chosen": "good", "rejected": "bad", "id": 4})))
    assert row.messages == tuple(talk)
    assert (row.id, row.responses, row.right, row.best_of_n) == ("4", ("good", "bad"), (True, False), False)


def test_labels_of_chosen_and_rejected_rows_are_balanced(in_folder: Write) -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(200)]
    asked = contests(read(in_folder("rows.jsonl", lines(*rows))))
    labels = [contest.label for contest in asked]
    assert 70 < sum(map(bool, labels)) < 130
    turned = contests(read(in_folder("turned.jsonl", lines(*rows[::-1]))))
    assert [contest.label for contest in turned[::-1]] == labels
    for contest in asked:
        assert contest.responses[not contest.label].startswith("good")
    # The chosen one is better: 0.9, 0.7.
    said = [{"id": c.id, "order": o, "p_first": p} for c in asked for o, p in (("AB", 0.9), ("BA", 0.3))]
    report, judged = evaluate(Path("rows.jsonl"), Recorded(in_folder("said.jsonl", lines(*said))), name="")
    assert (report["accuracy"], report["auroc"], report["order_agreement"]) == (1.0, 1.0, 1.0)
    for j in judged:
        assert j.judgement is not None
        shown_first = (j.judgement.a_first, j.judgement.b_first)
        expected = (0.3, 0.1) if j.contest.swapped else (0.9, 0.7)
        assert shown_first == pytest.approx(expected)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "p", "response_a": "x"}, "line 2: a row has a prompt .* this one has prompt, response_a"),
        (pair("1", "x", "y", "C"), "line 2, field 'label': must be A or B .*got 'C'"),
        (pair("1", "x", "y", True), "line 2, field 'label': must be A or B .*got True"),
        ({"prompt": "p", "response_a": "x", "response_b": "y"}, "field 'label': must be A or B .*got None"),
        (pair("1", "x", 3, "A"), "line 2, field 'response_b': must be text, got 3"),  # type: ignore[arg-type]
        ({**pair("1", "x", "y", "A"), "prompt": "  "}, "line 2, field 'prompt': must be a text, or messages"),
        ({**pair("1", "x", "y", "A"), "prompt": [{"role": "user"}]}, "field 'prompt': must be a text, or messages"),
        ({"prompt": "p", "chosen": [], "rejected": ["x"]}, "field 'chosen': must be a text or a list of at least one"),
        ({"prompt": "p", "chosen": ["x", 1], "rejected": "y"}, "field 'chosen': must be text, got 1"),
        (["p"], "line 2: a row must be an object"),
    ],
)
def test_rows_that_are_none(row: Any, says: str, in_folder: Write) -> None:
    with pytest.raises(UserError, match=says):
        read(in_folder("rows.jsonl", lines(PAIRS[0], row)))


# --- best of n -------------------------------------------------------------------------------------------------


class ByText:
    """Takes for better what has more of the letter x; as sure as it can be."""

    kind, shortened = "test", frozenset[str]()

    def compare(self, asked: Sequence[Contest], quiet: bool = False) -> list[Judgement | None]:
        return [None if "?" in c.row.prompt else preference(*(10.0 * r.count("x") for r in c.responses)) for c in asked]


def test_best_of_n(in_folder: Write) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "right", "chosen": ["xxx"], "rejected": ["x", "", "xx"], "subset": "one"},
        {"prompt": "wrong", "chosen": ["x"], "rejected": ["xxx", "xx"], "subset": "one"},
        {"prompt": "shared", "chosen": ["xx", "xx a", "x"], "rejected": ["xx b"], "subset": "two"},
        {"prompt": "no verdict?", "chosen": ["x"], "rejected": ["", "xx"], "subset": "two"},
        {"prompt": "a pair", "chosen": "x", "rejected": ""},
    ]
    report, judged = evaluate(in_folder("rows.jsonl", lines(*rows)), ByText(), name="by text")
    best = report["best_of_n"]
    assert (best["n"], best["no_verdict"]) == (3, 1)
    assert best["accuracy"] == pytest.approx((1 + 0 + 2 / 3) / 3)
    assert best["subsets"]["one"]["accuracy"] == 0.5
    assert best["subsets"]["two"] == {**best["subsets"]["two"], "n": 1, "no_verdict": 1}
    # pairs of a right and a wrong one: 3 + 2 + 3 + 1, and 2 without a verdict
    assert (report["n"], report["no_verdict"]) == (9, 2)
    assert report["accuracy"] == pytest.approx((3 + 0 + 1 + 0 + 1) / 9)
    assert [j.contest.id for j in judged[:3]] == ["1/0-1", "1/0-2", "1/0-3"]
    assert judged[-1].contest.id == "5"
    assert "best of n, two" in [str(cell) for table in eval_judge.tables(report) for cell in table.columns[0].cells]


# --- models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sequence classifier of one label with nano's tokenizer."""
    folder = tmp_path_factory.mktemp("reward")
    tokenizer = AutoTokenizer.from_pretrained(str(assets.NANO))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_scalar_reward_model_scores_as_transformers_does(reward_model: Path, in_folder: Write) -> None:
    rows = read(in_folder("rows.jsonl", lines(*PAIRS, pair("6", "word " * 200, "x", "A"))))
    judge = load(ModelConfig(path=str(reward_model)))
    assert isinstance(judge, ScalarJudge)
    found = judge.compare(contests(rows), quiet=True)
    assert found[5] is None
    tokenizer = AutoTokenizer.from_pretrained(str(reward_model))
    plain = LlamaForSequenceClassification.from_pretrained(reward_model).eval()
    for row, judgement in zip(rows[:5], found, strict=False):
        talks = [[*row.messages, {"role": "assistant", "content": response}] for response in row.responses]
        texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
        inputs = [tokenizer(text, return_tensors="pt", add_special_tokens=False) for text in texts]
        with torch.no_grad():
            a, b = (float(plain(**x).logits[0, 0]) for x in inputs)
        assert judgement is not None
        assert judgement.a_first == judgement.b_first == pytest.approx(1 / (1 + math.exp(b - a)), abs=1e-5)
    assert len({j.a_first for j in found if j}) > 2


def test_a_model_without_padding_is_asked_row_by_row(reward_model: Path, in_folder: Write) -> None:
    asked = contests(read(in_folder("rows.jsonl", lines(*PAIRS))))
    padded = load(ModelConfig(path=str(reward_model)))
    assert isinstance(padded, ScalarJudge)
    padded.model.config.pad_token_id = None
    alone = ScalarJudge(padded.model, padded.chat, padded.context)
    bare = alone.compare(asked, quiet=True)
    padded.model.config.pad_token_id = padded.chat.pad_id
    for one, other in zip(bare, padded.compare(asked, quiet=True), strict=True):
        assert one is not None
        assert other is not None
        assert one.p == pytest.approx(other.p, abs=1e-5)


def test_responses_that_are_too_long_can_be_cut(reward_model: Path, in_folder: Write) -> None:
    rows = [pair("1", "word " * 200, "x", "A"), pair("2", "x", "y", "B"), pair("3", "x", "y", "A", prompt="w " * 300)]
    data = in_folder("rows.jsonl", lines(*rows))
    report, _ = evaluate(data, load(ModelConfig(path=str(reward_model))), name="rm", quiet=True)
    assert (report["n"], report["no_verdict"], report["shortened"]) == (1, 2, 0)
    report, judged = evaluate(data, load(ModelConfig(path=str(reward_model)), cut=True), name="rm", quiet=True)
    assert (report["n"], report["no_verdict"], report["shortened"]) == (2, 1, 1)
    assert judged[0].contest.responses[0] == "word " * 200
    judge = load(ModelConfig(path="nano"), cut=True)
    assert isinstance(judge, CausalJudge)
    judge.judge.context = 200
    assert [j is None for j in judge.compare(contests(read(data)), quiet=True)] == [False, False, True]
    assert len(judge.shortened) == 1


def test_reward_models_that_are_none(reward_model: Path, tmp_path: Path, in_folder: Write, k2rl: Cli) -> None:
    in_folder("pairs.jsonl", lines(*PAIRS))

    def says(*arguments: str) -> str:
        code, _, err = k2rl(*JUDGE, *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert not Path("out.json").exists()
        return err

    assert "one label, not 2" in says("--model", "nano", "--kind", "scalar")
    assert "--rubric and --reasoning-tokens are for a causal LM" in says(
        "--model", str(reward_model), "--rubric", "core"
    )
    headless = json.loads((assets.NANO / "config.json").read_text()) | {"num_labels": 1}
    folder = tmp_path / "headless"
    folder.mkdir()
    for file in assets.NANO.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(headless))
    assert "no weights for score.weight" in says("--model", str(folder), "--kind", "scalar")
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in reward_model.iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).write_bytes(file.read_bytes())
    assert "needs a chat template" in says("--model", str(bare))
    assert "cannot be loaded" in says("--model", str(_pickled(reward_model, tmp_path / "pickled")))


def _pickled(model: Path, folder: Path) -> Path:
    """The model with its weights in a pickle."""
    folder.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    weights = LlamaForSequenceClassification.from_pretrained(model).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def test_preferences_of_far_scores_are_finite() -> None:
    assert preference(1000.0, -1000.0) == Judgement(1.0, 1.0)
    assert preference(-1000.0, 1000.0) == Judgement(0.0, 0.0)
    assert preference(2.0, 2.0) == Judgement(0.5, 0.5)


def test_a_causal_lm_judges_both_orders(in_folder: Write, k2rl: Cli) -> None:
    in_folder("pairs.jsonl", lines(*PAIRS))
    code, out, _ = k2rl(*JUDGE, "--model", "nano", "--rubric", "core")
    report = json.loads(Path("out.json").read_text())
    assert (code, report["n"], report["kind"], report["judge"]) == (0, 5, "judge", "nano")
    assert "nano on pairs.jsonl, 5 pairs" in out
    code, _, _ = k2rl(*JUDGE, "--model", "nano", "--reasoning-tokens", "4")
    report = json.loads(Path("out.json").read_text())
    assert (code, report["n"], report["no_verdict"]) == (0, 0, 5)  # no verdict fits into four tokens


def test_criteria_that_would_fill_a_small_context_are_told_briefly(tiny_folder: Path) -> None:
    """The tiny model takes 256 tokens and has no words for much."""
    judge = load(ModelConfig(path=str(tiny_folder)))
    assert isinstance(judge, CausalJudge)
    chat: Chat = judge.judge.prompt.chat
    assert len(chat.encode_untrusted(" ".join(judge.criteria))) < 128


@pytest.mark.parametrize("name", ["natural", "mt_bench_human"])
def test_llmbar(name: str, shared_data: Path, in_folder: Write) -> None:
    rows = json.loads((shared_data / "llmbar" / f"{name}.json").read_text())
    assert len(read(shared_data / "llmbar" / f"{name}.json")) == len(rows)
    few = in_folder("few.json", json.dumps(sorted(rows, key=lambda r: len(json.dumps(r)))[:12]))
    for model in ("nano", str(shared_data / "stories260k")):
        report, _ = evaluate(few, load(ModelConfig(path=model), cut=True), name=model, quiet=True)
        assert (report["n"], report["no_verdict"]) == (12, 0)
        assert 0.0 < report["brier"] < 0.6


# --- the command -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["html", "svg", "png"])
def test_plots(kind: str, in_folder: Write, k2rl: Cli) -> None:
    pytest.importorskip("matplotlib")
    in_folder("pairs.jsonl", lines(*PAIRS))
    in_folder("said<b>$.jsonl", lines(*verdict_lines(VERDICTS)))
    code, _, _ = k2rl(*JUDGE, "--recorded", "said<b>$.jsonl", "--plot", f"p.{kind}")
    assert code == 0
    picture = Path(f"p.{kind}").read_bytes()
    assert picture.startswith({"html": b"<!doctype html>", "svg": b"<?xml", "png": b"\x89PNG"}[kind])
    assert b"said<b>" not in picture


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "give --model or --recorded"),
        ("--model nano --recorded said.jsonl", "give --model or --recorded"),
        ("--recorded no.jsonl", "--recorded no.jsonl: no such file"),
        ("--recorded said.jsonl --too-long cut", "are for --model, not for --recorded"),
        ("--model nano --dtype float16", "--dtype float16: use auto, float32 or bfloat16"),
        ("--model ./nowhere", "no config.json there"),
        ("--model nano --rubric nothing-like-it", "nothing-like-it"),
        ("--recorded said.jsonl --plot p.pdf", "--plot p.pdf: can't draw .pdf: use .html, .svg, .png"),
        ("--recorded said.jsonl --rows-out said.jsonl", "--rows-out said.jsonl is the file of --recorded"),
        ("--recorded said.jsonl --plot out.json", "--plot out.json is the file of --json"),
        ("--recorded said.jsonl --plot no/p.png", "--plot no/p.png: give a file in a folder that exists"),
    ],
)
def test_mistakes_on_the_command_line(arguments: str, says: str, in_folder: Write, k2rl: Cli) -> None:
    in_folder("pairs.jsonl", lines(*PAIRS))
    in_folder("said.jsonl", lines(*verdict_lines(VERDICTS)))
    code, out, err = k2rl(*JUDGE, *arguments.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert not Path("out.json").exists()


def test_a_plot_without_matplotlib_names_the_extra(
    in_folder: Write, k2rl: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_folder("pairs.jsonl", lines(*PAIRS))
    in_folder("said.jsonl", lines(*verdict_lines(VERDICTS)))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = k2rl(*JUDGE, *SAID, "--plot", "p.png")
    assert (code, err) == (2, 'error: --plot needs matplotlib: pip install "k2rl[plot]"\n')
