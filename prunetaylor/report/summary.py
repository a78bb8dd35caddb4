"""A run in a few lines, for ``repr`` and for notebooks: the verdict, the metrics and the sparsity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunetaylor.core.text import neutral
from prunetaylor.report.formats import drop_label, drop_text, metric, percent
from prunetaylor.report.html.page import render
from prunetaylor.report.html.run_page import facts, sides

if TYPE_CHECKING:
    from prunetaylor.core.results.outcome import PruneResult


def outcome_lines(outcome: PruneResult) -> list[str]:
    """Return lines with the verdict, each metric before and after, and the sparsity, safe to print."""
    cut, drop = outcome.sparsity, outcome.drop
    told = outcome.verdict.text if outcome.verdict is not None else "a finished run"
    lines = [f"<prunetaylor: {neutral(told)}>"]
    for name, before in outcome.dense.metrics.items():
        line = f"{name}: {metric(name, before)} -> {metric(name, outcome.pruned.metrics.get(name))}"
        if drop is not None and name == outcome.metric:
            line += f" ({drop_label(outcome.metric_description)} {drop_text(drop, outcome.unit)})"
        lines.append(line)
    lines.append(f"sparsity: {percent(cut.obtained)}, {cut.removed:,} of {cut.prunable:,} weights removed")
    return [*lines, *(f"warning: {neutral(alert.text)}" for alert in outcome.warnings)]


def notebook(document: Mapping[str, Any]) -> str:
    """Return the top of a run's report as self-contained HTML; ``document`` is its report.json."""
    return render(
        "notebook.html",
        verdict=document["verdict"],
        warnings=document["warnings"],
        sides=sides(document),
        facts=facts(document),
    )
