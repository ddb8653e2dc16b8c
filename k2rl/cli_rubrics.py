"""`k2rl rubrics`: what a judge looks for. See docs/rubrics.md."""

from __future__ import annotations

from typing import Annotated

import typer

from k2rl import rubrics
from k2rl.cli_shared import JsonFlag, print_json, print_table

app = typer.Typer(help="What a judge looks for in responses.", no_args_is_help=True)


@app.command("list")
def list_rubrics(as_json: JsonFlag = False) -> None:
    """List the shipped sets of rubrics."""
    sets = rubrics.shipped().values()
    if as_json:
        print_json([found.to_json() for found in sets])
        return
    rows = [
        {
            "set": s.name,
            "rubric": r.name,
            "short": r.short,
            "must": "yes" if r.mandatory else "",
            "weight": f"{r.weight:g}",
        }
        for s in sets
        for r in s.rubrics
    ]
    print_table(rows, list(rows[0]))
    print("`k2rl rubrics show NAME` prints the texts of a set or a rubric")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A set, a rubric, or the path of a .yaml.")], as_json: JsonFlag = False
) -> None:
    """Print a set of rubrics, one of them, or a file of your own, which is checked by that."""
    found = rubrics.find(name)
    if as_json:
        print_json(found.to_json())
        return
    if found.path is not None:
        print(f"{found.name}: {found.description or 'no description'} ({found.path})")
    for rubric in found.rubrics:
        print(f"\n{rubric.name} ({rubric.short})")
        for line in (*rubrics.criteria([rubric]), *(f"or: {way}" for way in rubric.phrasings)):
            print(f"  {line}")
