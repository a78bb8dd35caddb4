"""Several runs side by side in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from prunetaylor.report.comparison import head, rows
from prunetaylor.report.formats import shorten
from prunetaylor.report.terminal.tables import new_table, print_list

_SHORT = {"inconclusive": "open"}


def print_comparison(console: Console, comparison: Mapping[str, Any]) -> None:
    """Print a row for each run, the smallest drop in bold, and the settings that differ."""
    drops = [run["drop"]["value"] if run["drop"] else float("inf") for run in comparison["runs"]]
    one_metric = len({run["metric"] for run in comparison["runs"]}) == 1
    gated = any(run["verdict"] for run in comparison["runs"])
    # 80 columns have no room for files' sizes and times
    names = head(comparison)
    table = new_table(*names[:5], "FLOPs,\nnon-zero", *(["gate"] if gated else []), padding=1 if gated else 2)
    for row, drop in zip(rows(comparison), drops, strict=True):
        name, method, sparsity, metric, interval, work, _, _, verdict = row
        best = "bold" if one_metric and drop == min(drops) < float("inf") and len(drops) > 1 else ""
        drop_cell = Text(interval.replace(" to ", ".."), style=best)
        cells: list[str | Text] = [shorten(name, 14), shorten(method, 11), sparsity, metric, drop_cell, work]
        table.add_row(*cells, *([_SHORT.get(verdict, verdict)] if gated else []))
    console.print(table)
    if comparison["settings"]:
        console.print()
        console.print("settings that differ", style="bold")
        for key, values in comparison["settings"].items():
            each = ", ".join(
                f"{shorten(run['name'], 14)} {v}" for run, v in zip(comparison["runs"], values, strict=True)
            )
            console.print(Text(f"  {key}: {each}"))
    print_list(console, "notes", comparison["notes"])
