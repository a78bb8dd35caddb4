"""The page of a sweep: its ranked trials, the plot, what failed and the best configuration."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from prunetaylor.outcome import SweepOutcome
from prunetaylor.report.page import render
from prunetaylor.report.sweep import chosen, field
from prunetaylor.report.terminal import number

_FIELDS = ("top1", "loss", "sparsity", "nonzero", "flops_nonzero", "bytes")


def sweep_page(found: SweepOutcome, plot: Path, best: Path) -> str:
    """One self-contained page; ``plot`` (SVG) and ``best`` (YAML) are shown where they are there."""
    names = list(dict.fromkeys([*(name for name, _ in found.objectives), *_FIELDS]))
    names = [name for name in names if any(name in trial.metrics for trial in found.trials)]
    several = len(found.objectives) > 1
    rows = []
    for trial in found.trials:
        rank = f"{trial.rank}{' *' if several and trial.front else ''}" if trial.rank else trial.state
        cells = [field(name, trial.metrics.get(name)) for name in names]
        rows.append([chosen(trial.parameters), rank, trial.number, *cells, number(trial.metrics.get("seconds"), 3)])
    goals = ", ".join(f"{goal} {name}" for name, goal in found.objectives)
    notes = [f"{len(found.trials)} trials by {found.method}: {goals}{'; * is the Pareto front' if several else ''}"]
    if found.samples:
        notes.append(f"Ranked and reported on different samples: {found.samples}.")
    if found.best is not None:
        told = ", ".join(f"{name} {field(name, value)}" for name, value in found.best.reported.items())
        notes.append(f"Best: trial {found.best.number}{f', on the samples that report: {told}' if told else ''}.")
    return render(
        "sweep.html",
        title=f"sweep {found.name}",
        notes=notes,
        head=["varied", "rank", "trial", *names, "seconds"],
        rows=rows,
        drawn=[("Accuracy against cost", _svg(plot), "")],
        failed=[f"trial {one.number} ({chosen(one.parameters)}): {one.cause}" for one in found.trials if one.cause],
        best=best.read_text(encoding="utf-8") if best.exists() else "",
    )


def _svg(file: Path) -> Markup | None:
    """Our own drawing, without what a page has already; its text was escaped as it was drawn."""
    if not file.exists():
        return None
    text = file.read_text(encoding="utf-8")
    return Markup(text[text.index("<svg") :])
