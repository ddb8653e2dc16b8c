"""A judge's report as a picture: how far its confidence can be believed, and what it makes of length."""

from __future__ import annotations

import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from k2rl import outputs
from k2rl.errors import UserError

KINDS = (".html", ".svg", ".png")


def check(path: Path) -> None:
    """Before the work: raises `UserError` for a kind of file that can't be drawn, or without matplotlib."""
    if path.suffix not in KINDS:
        raise UserError(f"--plot {path}: can't draw {path.suffix or 'a file without suffix'}: use {', '.join(KINDS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError('--plot needs matplotlib: pip install "k2rl[plot]"') from None


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the picture; .html is a page with the picture in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    reliability, lengths = figure.subplots(1, 2)
    _reliability(reliability, report)
    _lengths(lengths, report)
    title = f"{report['judge']} on {Path(report['data']).name}, {report['n']} pairs"
    figure.suptitle(title.replace("$", r"\$"))
    picture = io.BytesIO()
    figure.savefig(picture, format="png" if path.suffix == ".png" else "svg", dpi=150)
    if path.suffix == ".html":
        svg = picture.getvalue().decode()
        page = _PAGE.format(title=html.escape(title), svg=svg[svg.index("<svg") :])
        outputs.write(path, page.encode())
    else:
        outputs.write(path, picture.getvalue())


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body {{ margin: 1rem; }} svg {{ max-width: 100%; height: auto; }}</style>
{svg}
</html>
"""


def _reliability(axes: Any, report: Mapping[str, Any]) -> None:
    bins = [b for b in report["reliability"] if b["n"]]
    most = max((b["n"] for b in bins), default=1)
    axes.plot([0.5, 1], [0.5, 1], color="0.6", linestyle="--", label="calibrated")
    axes.bar(
        [(b["low"] + b["high"]) / 2 for b in bins],
        [0.3 * b["n"] / most for b in bins],
        width=0.045,
        color="0.88",
        label=f"pairs, at most {most}",
    )
    axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], marker="o", label="this judge")
    axes.set(xlim=(0.49, 1.01), ylim=(0, 1.02), xlabel="confidence: max(P, 1 - P)", ylabel="accuracy")
    axes.set_title("no pairs" if report["ece"] is None else f"calibration, ECE {report['ece']:.3f}")
    axes.legend(loc="upper left", fontsize="small")


def _lengths(axes: Any, report: Mapping[str, Any]) -> None:
    groups = report["lengths"]
    places = range(len(groups))
    axes.axhline(0.5, color="0.6", linestyle="--")
    axes.plot(places, [g["chosen_longer"] for g in groups], marker="o", label="chosen by the judge")
    axes.plot(places, [g["labelled_longer"] for g in groups], marker="s", label="right")
    axes.set_xticks(places, [f"to {g['ratio']:.2g}x\n({g['n']})" for g in groups])
    axes.set(ylim=(0, 1.02), xlabel="longer response by the length of the shorter (pairs)", ylabel="share longer")
    bias = report["length_bias"]
    axes.set_title("all of equal length" if bias is None else f"length bias {bias:+.3f}")
    if groups:
        axes.legend(loc="lower left", fontsize="small")
