"""Reports in a real browser: headless Chromium, driven by Playwright. Skipped where either is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from reported import HOSTILE, run_folder

from k2rl.loop import train
from k2rl.recipe import Recipe
from k2rl.recipe_files import load
from k2rl.report import page

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install 'k2rl[dev]'")

pytestmark = pytest.mark.slow

QUIET = "--disable-background-networking --disable-component-update --disable-sync --disable-quic --no-first-run"
"""Chromium's own business is none of the page's."""


@dataclass
class Opened:
    """A page, and what it said and asked for on its way."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("no Chromium here")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=binary, args=["--no-sandbox", "--disable-gpu", *QUIET.split()])
        yield made
        made.close()


def opened(browser: Any, path: Path, scheme: str = "light") -> Opened:
    found = Opened(browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=scheme))
    found.page.on("console", lambda message: found.said.append(message.text))
    found.page.on("pageerror", lambda error: found.said.append(str(error)))
    found.page.on("request", lambda request: found.asked.append(request.url))
    found.page.goto(path.as_uri())
    return found


def choose(page: Any, tab: str) -> None:
    page.click(f"nav button:text-is('{tab}')")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of the quickstart leaves at its end."""
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    small = ["run.iterations=2", "run.eval_tasks=4", "rollout.tasks=10", "rollout.group_size=4"]
    train(load(Recipe, "quickstart", small), folder, quiet=True)
    return folder / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_run_is_shown(scheme: str, browser: Any, report: Path) -> None:
    found = opened(browser, report, scheme)
    tab = found.page
    assert tab.evaluate("document.documentElement.dataset.theme") == scheme
    tabs = [button.inner_text() for button in tab.query_selector_all("nav button")]
    assert tabs == ["Learning", "Length", "Losses", "Judge", "Time", "Errors", "Rollouts", "Recipe"]
    for name in tabs[:5]:
        choose(tab, name)
        shown = tab.query_selector_all(f"section[aria-label='{name}'] canvas")
        assert shown, name
        for canvas in shown:
            assert canvas.evaluate(DRAWN), f"{name}: {canvas.get_attribute('aria-label')} is empty"
    assert tab.is_visible("text=Held-out tasks, before and after") is False
    choose(tab, "Learning")
    assert tab.is_visible("text=Held-out tasks, before and after")
    assert found.said == []
    assert found.asked == [report.as_uri()], "no network"
    before = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.click("#theme")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert all(canvas.evaluate(DRAWN) for canvas in tab.query_selector_all("section[aria-label='Learning'] canvas"))


DRAWN = """canvas => new Set(new Uint32Array(
    canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer)).size > 3"""
"""Whether there are more colours than of an empty chart's ground."""


def test_rollouts_are_filtered_and_opened(browser: Any, report: Path) -> None:
    found = opened(browser, report)
    tab = found.page
    choose(tab, "Rollouts")
    everything = len(tab.query_selector_all("#rollouts tbody tr"))
    assert tab.inner_text("#count").endswith(f"of {tab.inner_text('#count').split()[0]} rollouts")
    tab.select_option("select[name=verdict]", "correct")
    right = [row.inner_text() for row in tab.query_selector_all("#rollouts tbody tr")]
    assert 0 < len(right) < everything
    assert all("correct" in row for row in right)
    tab.fill("input[name='reward at most']", "0.5")
    assert tab.query_selector_all("#rollouts tbody tr") == []
    tab.fill("input[name='reward at most']", "")
    tab.click("#rollouts tbody tr >> nth=0")
    assert tab.query_selector_all("#detail .response span"), "token by token"
    assert "log-prob" in tab.get_attribute("#detail .response span", "title")
    assert "advantage" in tab.inner_text("#detail .facts")
    tab.select_option("select[name=verdict]", "ranked")
    tab.focus("#rollouts tbody tr >> nth=0")
    tab.keyboard.press("Enter")
    matches = tab.query_selector_all("#tournament tbody tr")
    assert matches
    assert "tournament by" in tab.inner_text("#detail")
    was = tab.inner_text("#detail .response")
    tab.click(".siblings button[aria-pressed='false'] >> nth=0")
    assert tab.inner_text("#detail .response") != was or tab.query_selector(".siblings button[aria-pressed='true']")
    assert found.said == []


def test_what_others_wrote_is_shown_as_text(browser: Any, tmp_path: Path) -> None:
    out = page.write([run_folder(tmp_path / "run", text=HOSTILE)], tmp_path / "report.html")
    found = opened(browser, out)
    choose(found.page, "Rollouts")
    found.page.click("#rollouts tbody tr >> nth=1")
    told = found.page.inner_text("#detail .prompt")
    assert "<img src=x onerror='window.hacked = 1'>" in told
    assert "\u241b[31mred\u2407 \u27e8U+202E\u27e9turned \u27e8U+DCFF\u27e9 @@DATA@@ &amp;" in told
    assert found.page.evaluate("window.hacked") is None
    assert found.said == []
    assert found.asked == [out.as_uri()]


def test_a_long_run_opens(browser: Any, tmp_path: Path) -> None:
    """1,000 iterations, 100,000 rollouts."""
    long = run_folder(tmp_path / "run", 1000, groups=10, members=10, text="words and more words " * 10)
    out = page.write([long], tmp_path / "report.html")
    assert out.stat().st_size < 20_000_000
    found = opened(browser, out)
    assert found.page.query_selector_all("section[aria-label='Learning'] canvas")
    choose(found.page, "Rollouts")
    assert len(found.page.query_selector_all("#rollouts tbody tr")) == 100, "the rest when asked for"
    assert found.said == []


def test_runs_beside_each_other(browser: Any, tmp_path: Path) -> None:
    folders = [run_folder(tmp_path / name, n) for name, n in (("one", 3), ("two", 5))]
    found = opened(browser, page.write(folders, tmp_path / "both.html"))
    assert [e.inner_text().strip() for e in found.page.query_selector_all("#runs .name")] == ["one", "two"]
    choose(found.page, "Rollouts")
    found.page.select_option("select[name=run]", "two")
    assert found.page.inner_text("#count").startswith("20 of 32")
    assert found.said == []
