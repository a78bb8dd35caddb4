"""Tables and lists for a terminal that is 80 columns wide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.console import Console, JustifyMethod
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from prunetaylor.core.text import neutral

if TYPE_CHECKING:
    from prunetaylor.core.results.outcome import Alert

_LINE = 2000


def print_alerts(console: Console, warnings: Iterable[Alert]) -> None:
    """Print each warning in red, after an empty line."""
    for alert in warnings:
        console.print()
        console.print(Text(f"warning: {alert.text}", style="bold red"))


def print_list(console: Console, title: str, lines: Iterable[str]) -> None:
    """Print a titled list, if it has lines; prose is wrapped, a path stays in one piece."""
    lines = [neutral(line, _LINE) for line in lines]
    if not lines:
        return
    console.print()
    console.print(title, style="bold")
    for line in lines:
        # a path must stay in one piece; prose is wrapped
        if " " in line:
            console.print(Padding(Text(line), (0, 0, 0, 2)))
        else:
            console.print(Text(f"  {line}"), soft_wrap=True)


def new_table(first: str, *others: str, padding: int = 3) -> Table:
    """Return a table whose numbers are aligned right; a column of names, shapes or verdicts is aligned left."""
    table = Table(box=None, pad_edge=False, padding=(0, padding, 0, 0), header_style="bold")
    table.add_column(first, overflow="fold")
    for name in others:
        # a window that is too narrow breaks numbers, and loses none
        justify: JustifyMethod = "left" if name in ("shape", "type", "verdict") else "right"
        table.add_column(name, justify=justify, overflow="fold")
    return table


def pairs_table() -> Table:
    """Return a table of labels and values without a header."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    return table
