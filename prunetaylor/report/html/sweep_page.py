"""The page of a sweep: ranked trials with links to their reports, the plot, failures, the best configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetaylor.core.results.sweep import SweepResult, Trial
from prunetaylor.report.formats import number, quantity, settings
from prunetaylor.report.html import figures
from prunetaylor.report.html.page import figure, render
from prunetaylor.report.pareto import Point
from prunetaylor.report.titles import axis_title, title

_FIELDS = ("sparsity", "nonzero", "flops_nonzero", "bytes")


def sweep_page(
    sweep: SweepResult, *, value: str, sign: int, cost: str, links: Mapping[int, str], best: str = ""
) -> str:
    """Return one self-contained page.

    Args:
        value, sign, cost: the plotted metric, its direction (1 if larger is better), and the cost on the x-axis.
        links: addresses of the trials' reports or errors, relative to the page; the other trials are not linked.
        best: YAML of the best trial's configuration.
    """
    names = list(dict.fromkeys([*(name for name, _ in sweep.objectives), *sweep.metrics, *_FIELDS]))
    names = [name for name in names if any(name in trial.metrics for trial in sweep.trials)]
    points = [
        Point(one.metrics[cost], one.metrics[value], one.interval.get(value), str(one.number))
        for one in sweep.trials
        if cost != value and cost in one.metrics and value in one.metrics
    ]
    drawn = figures.accuracy_against_cost(points, value=value, sign=sign, cost=cost)
    caption = "On the ranking samples, with 95 % intervals. Numbers are those of the trials."
    return render(
        "sweep.html",
        title=f"Sweep: {sweep.name}",
        notes=_notes(sweep),
        tiles=_tiles(sweep),
        head=["settings", "rank", "trial", *map(title, names), title("seconds")],
        rows=[_row(trial, names, links, len(sweep.objectives) > 1) for trial in sweep.trials],
        drawn=[figure(f"{title(value)} vs {axis_title(cost)}", drawn, caption)],
        failed=[
            (_link(f"trial {one.number}", one.number, links), f"({settings(one.parameters)}): {one.cause}")
            for one in sweep.trials
            if one.cause
        ],
        best=best,
    )


def _notes(sweep: SweepResult) -> list[str]:
    goals = ", ".join(f"{goal} {title(name)}" for name, goal in sweep.objectives)
    several = "; * marks the Pareto front" if len(sweep.objectives) > 1 else ""
    notes = [f"{len(sweep.trials)} trials, method {sweep.method}: {goals}{several}."]
    if sweep.never_ran:
        notes.append(f"{sweep.never_ran} of {len(sweep.trials)} trials never ran.")
    return [*notes, f"{sweep.samples[:1].upper()}{sweep.samples[1:]}."] if sweep.samples else notes


def _tiles(sweep: SweepResult) -> list[tuple[str, str, str]]:
    """Return (label, number, note) for the best trial and for the number of trials."""
    tiles = []
    if (best := sweep.best) is not None:
        tiles.append(("best", f"trial {best.number}", settings(best.parameters)))
        tiles += [
            (title(name), quantity(name, value), "best trial, test samples") for name, value in best.reported.items()
        ]
    finished = sum(trial.state == "done" for trial in sweep.trials)
    tiles.append(("trials done", f"{finished} of {len(sweep.trials)}", f"{sweep.failed} failed"))
    return tiles


def _row(trial: Trial, names: list[str], links: Mapping[int, str], several: bool) -> list[Any]:
    rank = f"{trial.rank}{' *' if several and trial.front else ''}" if trial.rank else trial.state
    cells = [quantity(name, trial.metrics.get(name)) for name in names]
    link = _link(str(trial.number), trial.number, links)
    return [settings(trial.parameters), rank, link, *cells, f"{number(trial.metrics.get('seconds'), 3)} s"]


def _link(text: str, number: int, links: Mapping[int, str]) -> str | dict[str, str]:
    return {"text": text, "href": links[number]} if number in links else text
