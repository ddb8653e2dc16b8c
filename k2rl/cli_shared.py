"""What the command line's modules share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, cast

import typer

from k2rl.errors import UserError
from k2rl.terminal import shown_lines

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else.")]


def arguments(items: Sequence[str]) -> dict[str, Any]:
    """`["level=3", "config.size=4"]` as a mapping. Raises `UserError` for an item that is no `key=value`."""
    from omegaconf import OmegaConf

    for item in items:
        if "=" not in item:
            raise UserError(f"--arg {item!r}: write key=value, such as --arg level=3")
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist(list(items))))


def print_json(data: object) -> None:
    """On stdout; dates and the like (of parquet rows) become text."""
    print(json.dumps(data, indent=2, ensure_ascii=False, default=str))


def print_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Rows as a table of these columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Others' words: no markup, and nothing a terminal would obey.
        table.add_row(*(Text(shown_lines(str(row[column]))) for column in columns))
    Console().print(table)
