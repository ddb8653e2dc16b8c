"""Rubrics: the shipped sets, names and paths and texts, what a judge is told, and one line for a bad file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from k2rl_envs.open_env import OpenEnv
from test_cli import Cli

from k2rl import rubrics
from k2rl.errors import UserError
from k2rl.recipe import Recipe
from k2rl.recipe_files import resolve as resolve_recipe
from k2rl.rubrics import Rubric, criteria, resolve

Files = Callable[[str, str], Path]
PAGE = (Path(__file__).parents[1] / "docs" / "rubrics.md").read_text("utf-8")
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)


@pytest.fixture
def k2rl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.chdir(tmp_path)
    return Cli(monkeypatch, capsys)


def test_the_shipped_sets() -> None:
    sets = rubrics.shipped()
    assert {name: [r.name for r in found.rubrics] for name, found in sets.items()} == {
        "core": ["clarity", "conversation", "grounded"],
        "correctness": ["right_answer"],
        "prescriptive": ["no_praise", "no_justification"],
        "uncertainty": ["calibrated"],
        "writing": ["asked_words", "asked_tone", "asked_form"],
    }
    assert criteria(resolve(["writing", "correctness"]), short=True) == ("words", "tone", "form", "correct")
    for found in sets.values():
        assert found.description
        for rubric in found.rubrics:
            ways = {rubric.text, *rubric.phrasings}
            assert len(ways) == 1 + len(rubric.phrasings) >= 4  # several, no two alike
            assert "\n" not in "".join((*ways, rubric.short))
            assert rubric.mandatory == (found.name == "prescriptive")


def test_an_item_is_a_set_a_rubric_a_path_or_a_text(in_folder: Files) -> None:
    in_folder("ours.yaml", "polite: {text: It is polite.}\n")
    in_folder(
        "our own.yaml", "brief: {text: It is brief., short: brief, weight: 3, mandatory: yes, phrasings: [Terse]}"
    )
    text = "It names the town in ours.yaml"
    found = resolve(["no_praise", "prescriptive", "ours.yaml", "our own.yaml", text, f" {text} "])
    assert [r.name for r in found[:4]] == ["no_praise", "no_justification", "polite", "brief"]
    assert found[2] == Rubric("polite", "It is polite.", "polite")
    assert found[3] == Rubric("brief", "It is brief.", "brief", 3.0, True, ("Terse",))
    assert [(r.text, r.short) for r in found[4:]] == [(text, text)]
    assert resolve([]) == ()


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("cor", "no rubric 'cor' (did you mean 'core'?): give a name of `k2rl rubrics list`"),
        ("no_prais", "did you mean 'no_praise'?"),
        ("none.yaml", "can't read the rubrics none.yaml: No such file"),
        ("", "no rubric ''"),
    ],
)
def test_what_means_nothing(item: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        resolve([item])
    assert says in str(error.value)


def test_a_phrasing_is_drawn_by_its_key() -> None:
    found = resolve(["core", "prescriptive"])
    texts = [r.text for r in found]
    assert [c.removeprefix("A must: ") for c in criteria(found)] == texts
    drawn = [criteria(found, "judge", seed, "task") for seed in range(60)]
    assert drawn == [criteria(found, "judge", seed, "task") for seed in range(60)]
    for n, rubric in enumerate(found):
        assert {c[n].removeprefix("A must: ") for c in drawn} == {rubric.text, *rubric.phrasings}
    assert criteria(found[1:], "judge", 7, "task") == drawn[7][1:]  # not a matter of the rubrics beside it


def test_weights_and_musts_are_said_in_words() -> None:
    heavy = Rubric("heavy", "It rhymes.", "rhyme", weight=2.5, mandatory=True)
    assert criteria([heavy]) == ("A must: It rhymes. (Counts 2.5 times as much as an ordinary criterion.)",)
    assert criteria([heavy], short=True) == ("rhyme",)


GOOD = "# Ours.\nfirst: {text: One.}\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "bad.yaml holds no rubrics"),
        ("{}", "bad.yaml, line 1: no rubrics"),
        ("- text: One.", "bad.yaml, line 1: a file of rubrics is a mapping: NAME: {text, short, "),
        (GOOD + "a b: {text: Two.}", "line 3: 'a b' is no name of a rubric"),
        (GOOD + "? [a]\n: {text: Two.}", "line 3: a list is no name"),
        (GOOD + "second: Two.", "line 3, field 'second': a rubric is a mapping of text, short, weight, mandatory"),
        (GOOD + "second:\n  short: two", "line 3, field 'second': it has no text"),
        (GOOD + "first: {text: Two.}", "line 3: 'first' is there twice, first in line 2"),
        (GOOD + "b:\n  text: x\n  text: y", "line 5, field 'b': 'text' is there twice, first in line 4"),
        (GOOD + "b:\n  text: x\n  wieght: 2", "line 5, field 'b': unknown field 'wieght' (did you mean 'weight'?)"),
        (GOOD + "b:\n  text: 7", "line 4, field 'b.text': must be text, got '7'"),
        (GOOD + "b:\n  text:", "line 4, field 'b.text': must be text, got nothing"),
        (GOOD + "b:\n  text: ' '", "line 4, field 'b.text': is empty"),
        (GOOD + 'b:\n  text: "\\ud800"', "line 4, field 'b.text': holds half of a surrogate pair"),
        (GOOD + "b:\n  text: [x]", "line 4, field 'b.text': must be text, got a list"),
        (GOOD + "b:\n  text: x\n  short: ''", "line 5, field 'b.short': is empty"),
        (GOOD + "b:\n  text: x\n  weight: 0", "line 5, field 'b.weight': must be above 0 and finite, got 0"),
        (GOOD + "b:\n  text: x\n  weight: -1.5", "must be above 0 and finite, got -1.5"),
        (GOOD + "b:\n  text: x\n  weight: .nan", "must be above 0 and finite, got .nan"),
        (GOOD + "b:\n  text: x\n  weight: .inf", "must be above 0 and finite, got .inf"),
        (GOOD + f"b:\n  text: x\n  weight: {'9' * 400}", "line 5, field 'b.weight': must be above 0 and finite"),
        (GOOD + "b:\n  text: x\n  weight: true", "line 5, field 'b.weight': must be a number, got 'true'"),
        (GOOD + "b:\n  text: x\n  weight: much", "must be a number, got 'much'"),
        (GOOD + "b:\n  text: x\n  mandatory: 1", "line 5, field 'b.mandatory': must be true or false, got '1'"),
        (GOOD + "b:\n  text: x\n  mandatory: !!bool 1", "must be true or false, got '1'"),
        (GOOD + "b:\n  text: x\n  phrasings: y", "field 'b.phrasings': must be a list of texts, got 'y'"),
        (GOOD + "b:\n  text: x\n  phrasings:\n    - y\n    - 2", "line 7, field 'b.phrasings.2': must be text"),
        (GOOD + "b: {text: x", "line 3: not valid YAML"),
        (GOOD + "b:\n  text: x\n---\nc: 1", "line 5: not valid YAML"),
        (GOOD + "b: *a", "line 3: not valid YAML"),
        (GOOD + "b:\n  text: a\0b", "line 4: not valid YAML: special characters are not allowed"),
        ("[" * 5000, "not a file of rubrics: nested too deeply"),
    ],
)
def test_a_bad_file_is_told_in_one_line(text: str, says: str, in_folder: Files) -> None:
    in_folder("bad.yaml", text)
    with pytest.raises(UserError) as error:
        resolve(["bad.yaml"])
    assert says in str(error.value)
    assert str(error.value).startswith("bad.yaml")
    assert "\n" not in str(error.value)


def test_a_file_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(GOOD.encode() + "ä: {text: x}".encode("latin-1"))
    with pytest.raises(UserError, match=r"bad\.yaml, line 3: not UTF-8 text"):
        rubrics.load(tmp_path / "bad.yaml")


def test_list(k2rl: Cli) -> None:
    listed = k2rl.json("rubrics", "list", "--json")
    assert [found["name"] for found in listed] == list(rubrics.shipped())
    assert listed[0]["rubrics"][0]["name"] == "clarity"
    code, out, _ = k2rl("rubrics", "list")
    assert code == 0
    assert all(r.name in out for found in rubrics.shipped().values() for r in found.rubrics)


def test_show(k2rl: Cli, in_folder: Files) -> None:
    in_folder("ours.yaml", "# How we answer.\npolite: {text: It is polite., weight: 2, phrasings: [It has manners.]}\n")
    assert k2rl("rubrics", "show", "ours.yaml")[:2] == (
        0,
        "ours: How we answer. (ours.yaml)\n\npolite (polite)\n"
        "  It is polite. (Counts 2 times as much as an ordinary criterion.)\n  or: It has manners.\n",
    )
    assert k2rl.json("rubrics", "show", "ours.yaml", "--json") == {
        "name": "ours",
        "description": "How we answer.",
        "path": "ours.yaml",
        "rubrics": [
            {
                "name": "polite",
                "text": "It is polite.",
                "short": "polite",
                "weight": 2.0,
                "mandatory": False,
                "phrasings": ["It has manners."],
            }
        ],
    }
    only = k2rl.json("rubrics", "show", "no_praise", "--json")
    assert (only["name"], [r["name"] for r in only["rubrics"]]) == ("prescriptive", ["no_praise"])
    assert "did you mean 'core'?" in k2rl.mistake("rubrics", "show", "cores")


def test_the_page_is_true(k2rl: Cli, in_folder: Files) -> None:
    blocks = BLOCK.findall(PAGE)
    for _, title, text in blocks:
        if title:
            in_folder(title, text)
    said = ""
    for language, title, text in blocks:
        for line in text.splitlines() if language == "sh" else ():
            code, out, err = k2rl(*shlex.split(line)[1:])
            assert code == 0, err
            said += out
        if language == "yaml" and not title:
            (spec,) = resolve_recipe(Recipe, yaml.safe_load(text)).envs.values()
            env = OpenEnv(**{**spec.args, "test_share": 0.5})
            assert [r.name for r in resolve(env.common)][-2:] == ["polite", "next_step"]
    assert "A must: It ends with the one thing" in said
    assert all(f"| `{name}` |" in PAGE for name in rubrics.shipped())
