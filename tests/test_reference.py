"""The reference pages are what the code says now, and say something of every key."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from k2rl import metric_keys, reference
from k2rl.metric_keys import KEYS
from k2rl.recipe import Recipe, SftRecipe

ROOT = Path(__file__).parents[1]
SPOKEN_OF = re.compile(
    r"(critic|correction|curriculum|errors|eval|loss|mismatch|perf|sync|time|train)/[\w@/\0]*[\w@\0]"
)
"""What looks like a whole key of metrics, with \\0 for what is filled in."""


def strings(path: Path) -> Iterator[str]:
    """The strings of a module, but for docstrings; what an f-string fills in as \\0."""
    tree = ast.parse(path.read_text("utf-8"))
    parts = {id(c) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for c in node.values}
    parts |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(c.value) if isinstance(c, ast.Constant) else "\0" for c in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_what_the_code_says(name: str) -> None:
    written = (ROOT / "docs" / name).read_text("utf-8")
    assert written == reference.PAGES[name](), "run: python -m k2rl.reference docs"


@pytest.mark.parametrize("name", reference.PAGES)
def test_its_links_lead_somewhere(name: str) -> None:
    page = reference.PAGES[name]()
    titles = re.findall(r"^## (.*)$", page, re.M)
    assert len(set(titles)) == len(titles)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\(([^)]*)\)", page):
        file, _, anchor = target.partition("#")
        assert (ROOT / "docs" / file).exists(), target
        assert file or anchor in anchors, target


@pytest.mark.parametrize("root", [Recipe, SftRecipe])
def test_every_key_of_a_recipe_has_a_text_and_no_other(root: type) -> None:
    for config in reference._places(root):
        texts = reference._texts(config)[1]
        assert texts.keys() == {field.name for field in dataclasses.fields(config)}, config


def test_ranges_are_those_that_are_checked() -> None:
    page = reference.recipe_page()
    assert "| `group_size` | integer | `16` | 2 or more |" in page
    assert "| `betas` | list of numbers | `[0.9, 0.95]` | two numbers in [0, 1) |" in page
    assert '| `mode` | text | `"truncate"` | truncate, override, toggle |' in page


def test_every_key_of_the_metrics_is_produced_where_it_says() -> None:
    for key in KEYS:
        last = re.sub(r"(/?<\w+>)+$", "", key.name).rpartition("/")[2]
        word = re.compile(rf"(?<!\w){re.escape(last)}(?!\w)")
        assert any(word.search(text) for text in strings(ROOT / "k2rl" / key.source)), key


def test_every_key_that_a_module_speaks_of_is_documented() -> None:
    samples = [
        re.sub(r"<\w+>", "x", key.name.replace("<source>", source)) for key in KEYS for source in metric_keys.SOURCES
    ]
    found = 0
    for path in (ROOT / "k2rl").rglob("*.py"):
        for text in filter(SPOKEN_OF.fullmatch, strings(path)):
            pattern = re.compile(re.escape(text).replace("\0", ".+"))
            assert any(map(pattern.fullmatch, samples)), f"{path}: {text!r}: is it in k2rl/metric_keys.py?"
            found += 1
    assert found > 50


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("reward/math", "reward/<env>"),
        ("critic/accuracy/writing/apart/other_word", "critic/accuracy/<env>/<source>/<kind>"),
        ("critic/accuracy/writing/apart", "critic/accuracy/<env>/<source>"),
        ("eval/math/pass@1", "eval/<env>/pass@1"),
        ("reward/", None),
        ("critic/brier/writing/nowhere", None),
    ],
)
def test_a_key_is_found_by_its_pattern(key: str, known: str | None) -> None:
    found = metric_keys.of(key)
    assert (found and found.name) == known
