"""Several runs side by side, from their report.json: as plain rows, in a terminal, as JSON and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from prunetaylor.report.html import figures
from prunetaylor.report.html.page import clip, figure, flat, render
from prunetaylor.report.json_report import SCHEMA_VERSION
from prunetaylor.report.terminal.run import count, new_table, number, percent, print_list, shorten, size
from prunetaylor.report.titles import title

Document = Mapping[str, Any]

_HEAD = ["run", "method", "sparsity", "metric", "drop (95 %), pp", "FLOPs, non-zero", "file", "time", "gate"]
_SHORT = {"inconclusive": "open"}
_UNEQUAL = {"model.checkpoint", "output"}
"""Settings that say where, not how."""


def compare(names: Sequence[str], documents: Sequence[Document]) -> dict[str, Any]:
    """What ``compare --json`` prints: the runs' numbers in the order given, the settings that differ, what to mind."""
    return {
        "schema_version": SCHEMA_VERSION,
        "runs": [_run(name, one) for name, one in zip(names, documents, strict=True)],
        "settings": differing(documents),
        "notes": [*notes(documents), *_warned(names, documents)],
    }


def _run(name: str, one: Document) -> dict[str, Any]:
    metric = one["metric"]["name"]
    return {
        "name": name,
        "method": one.get("method") or (one["configuration"].get("prune") or {}).get("method"),
        "metric": metric,
        "dense": one["dense"]["metrics"].get(metric),
        "pruned": one["pruned"]["metrics"].get(metric),
        "drop_pp": one["drop_pp"],
        "sparsity": one["sparsity"]["obtained"],
        "flops_nonzero": one["pruned"]["flops_nonzero"],
        "flops": one["pruned"]["flops"],
        "bytes": one["pruned"]["bytes"],
        "seconds": one["seconds"].get("total"),
        "seed": one["seed"],
        "stages": len(one["stages"]),
        "epochs": len(one["epochs"]),
        "verdict": (one.get("gate") or {}).get("verdict"),
        "hashes": one["hashes"],
    }


def differing(documents: Sequence[Document]) -> dict[str, list[str]]:
    """Settings by dotted key, with each run's value, where they are not all the same; a dash where a run has none."""
    settings = [dict(flat(one["configuration"])) for one in documents]
    keys = dict.fromkeys(key for one in settings for key in one)
    values = {key: [one.get(key, "-") for one in settings] for key in keys if key not in _UNEQUAL}
    return {key: found for key, found in values.items() if len(set(found)) > 1}


def _warned(names: Sequence[str], documents: Sequence[Document]) -> list[str]:
    return [
        f"{name}: warning: {alert['text']}"
        for name, one in zip(names, documents, strict=True)
        for alert in one.get("warnings") or []
    ]


def notes(documents: Sequence[Document]) -> list[str]:
    """Why these runs may not be comparable."""
    found = []
    for what, why in (
        ("data", "the runs were measured on different samples"),
        ("checkpoint", "the runs pruned different networks"),
    ):
        if len({one["hashes"].get(what) for one in documents}) > 1:
            found.append(f"{why} (their {what} hashes differ)")
    if len({one["metric"]["name"] for one in documents}) > 1:
        found.append("the runs were measured by different metrics")
    return found


def head(found: Mapping[str, Any]) -> list[str]:
    """Names of the columns: of the metric its own, where all runs have the same."""
    return [_metric_title(found) if name == "metric" else name for name in _HEAD]


def rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row of text a run, as ``head`` names them."""
    return [
        (
            run["name"],
            run["method"] or "-",
            percent(run["sparsity"]),
            _metric(run["metric"], run["pruned"]),
            _drop(run["drop_pp"]),
            count(run["flops_nonzero"]),
            size(run["bytes"]),
            f"{number(run['seconds'], 3)} s",
            run["verdict"] or "-",
        )
        for run in found["runs"]
    ]


def _metric_title(found: Mapping[str, Any]) -> str:
    """The metric's name where all runs have the same."""
    names = {run["metric"] for run in found["runs"]}
    return title(names.pop()) if len(names) == 1 else "metric"


def _metric(name: str, value: float | None) -> str:
    return f"{value:.2f} %" if name == "top1" and value is not None else number(value)


def _drop(drop: Mapping[str, float] | None) -> str:
    return "-" if drop is None else f"{drop['value']:.2f} ({drop['low']:.2f} to {drop['high']:.2f})"


def print_comparison(console: Console, found: Mapping[str, Any]) -> None:
    """A row a run; the smallest drop stands out. Then what differs between their settings."""
    drops = [run["drop_pp"]["value"] if run["drop_pp"] else float("inf") for run in found["runs"]]
    gated = any(run["verdict"] for run in found["runs"])
    # 80 columns have no room for files' sizes and times
    names = head(found)
    table = new_table(*names[:5], "FLOPs,\nnon-zero", *(["gate"] if gated else []), padding=1 if gated else 2)
    for row, drop in zip(rows(found), drops, strict=True):
        name, method, sparsity, metric, interval, work, _, _, verdict = row
        best = "bold" if drop == min(drops) < float("inf") and len(drops) > 1 else ""
        drop_cell = Text(interval.replace(" to ", ".."), style=best)
        cells: list[str | Text] = [shorten(name, 14), shorten(method, 11), sparsity, metric, drop_cell, work]
        table.add_row(*cells, *([_SHORT.get(verdict, verdict)] if gated else []))
    console.print(table)
    if found["settings"]:
        console.print()
        console.print("settings that differ", style="bold")
        for key, values in found["settings"].items():
            each = ", ".join(f"{shorten(run['name'], 14)} {v}" for run, v in zip(found["runs"], values, strict=True))
            console.print(Text(f"  {key}: {each}"))
    print_list(console, "notes", found["notes"])


def compare_page(names: Sequence[str], documents: Sequence[Document]) -> str:
    """The same as one HTML file, with the drops over the sparsity and every layer's sparsity."""
    found = compare(names, documents)
    layers: dict[str, list[str]] = {}
    for i, one in enumerate(documents):
        for layer in one["layers"]:
            layers.setdefault(layer["name"], ["-"] * len(documents))[i] = percent(layer["sparsity"])
    drawn = figures.drops_of_runs(names, documents)
    return render(
        "compare.html",
        title=f"{len(documents)} runs side by side",
        notes=found["notes"],
        head=head(found),
        rows=rows(found),
        names=list(names),
        drawn=[figure("Drop of each run", drawn, "With paired 95 % intervals; the sparsity stands behind each name.")],
        differ=[(key, *values) for key, values in found["settings"].items()],
        layers=[(clip(name, 120), *values) for name, values in layers.items()],
    )
