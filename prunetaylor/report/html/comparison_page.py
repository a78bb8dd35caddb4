"""The page of several runs side by side, from their report.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunetaylor.report.comparison import compare, head, rows
from prunetaylor.report.formats import percent
from prunetaylor.report.html import figures
from prunetaylor.report.html.page import clip, figure, render

Document = Mapping[str, Any]


def compare_page(names: Sequence[str], documents: Sequence[Document]) -> str:
    """Return the comparison as one HTML page, with the drops against sparsity and every layer's sparsity."""
    comparison = compare(names, documents)
    layers: dict[str, list[str]] = {}
    for i, one in enumerate(documents):
        for layer in one["layers"]:
            layers.setdefault(layer["name"], ["-"] * len(documents))[i] = percent(layer["sparsity"])
    drawn = figures.drops_of_runs(names, documents)
    return render(
        "compare.html",
        title=f"{len(documents)} runs side by side",
        notes=comparison["notes"],
        head=head(comparison),
        rows=rows(comparison),
        names=list(names),
        drawn=[figure("Drop of each run", drawn, "With paired 95 % intervals; the sparsity follows each name.")],
        differ=[(key, *values) for key, values in comparison["settings"].items()],
        layers=[(clip(name, 120), *values) for name, values in layers.items()],
    )
