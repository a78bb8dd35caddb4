"""The page of a sweep: its ranked trials with links to their reports, the plot, what failed, the best configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunetaylor.core.results.sweep import SweepResult, Trial
from prunetaylor.report.html import figures
from prunetaylor.report.html.page import figure, render
from prunetaylor.report.pareto import Point
from prunetaylor.report.terminal.run import number
from prunetaylor.report.terminal.sweep import chosen, field
from prunetaylor.report.titles import axis_title, title

_FIELDS = ("top1", "loss", "sparsity", "nonzero", "flops_nonzero", "bytes")


def sweep_page(
    found: SweepResult, *, value: str, sign: int, cost: str, links: Mapping[int, str], best: str = ""
) -> str:
    """One self-contained page.

    Args:
        value, sign, cost: what the plot shows against what; ``sign`` is 1 where more of the value is better.
        links: where a trial's report or error lies, relative to the page; trials without one are not linked.
        best: YAML of the best trial's configuration.
    """
    names = list(dict.fromkeys([*(name for name, _ in found.objectives), *_FIELDS]))
    names = [name for name in names if any(name in trial.metrics for trial in found.trials)]
    points = [
        Point(one.metrics[cost], one.metrics[value], one.interval.get(value), str(one.number))
        for one in found.trials
        if cost != value and cost in one.metrics and value in one.metrics
    ]
    drawn = figures.accuracy_against_cost(points, value=value, sign=sign, cost=cost)
    said = "On the ranking samples, with 95 % intervals. Numbers are those of the trials."
    return render(
        "sweep.html",
        title=f"Sweep: {found.name}",
        notes=_notes(found),
        tiles=_tiles(found),
        head=["settings", "rank", "trial", *map(title, names), title("seconds")],
        rows=[_row(trial, names, links, len(found.objectives) > 1) for trial in found.trials],
        drawn=[figure(f"{'Accuracy' if value == 'top1' else title(value)} vs {axis_title(cost)}", drawn, said)],
        failed=[
            (_link(f"trial {one.number}", one.number, links), f"({chosen(one.parameters)}): {one.cause}")
            for one in found.trials
            if one.cause
        ],
        best=best,
    )


def _notes(found: SweepResult) -> list[str]:
    goals = ", ".join(f"{goal} {title(name)}" for name, goal in found.objectives)
    several = "; * marks the Pareto front" if len(found.objectives) > 1 else ""
    notes = [f"{len(found.trials)} trials, method {found.method}: {goals}{several}."]
    if found.never_ran:
        notes.append(f"{found.never_ran} of {len(found.trials)} trials never ran.")
    return [*notes, f"{found.samples[:1].upper()}{found.samples[1:]}."] if found.samples else notes


def _tiles(found: SweepResult) -> list[tuple[str, str, str]]:
    """(label, number, what stands under it) of the best trial and of how many there are."""
    tiles = []
    if (best := found.best) is not None:
        tiles.append(("best", f"trial {best.number}", chosen(best.parameters)))
        tiles += [
            (title(name), field(name, value), "best trial, test samples") for name, value in best.reported.items()
        ]
    done = sum(trial.state == "done" for trial in found.trials)
    tiles.append(("trials done", f"{done} of {len(found.trials)}", f"{found.failed} failed"))
    return tiles


def _row(trial: Trial, names: list[str], links: Mapping[int, str], several: bool) -> list[Any]:
    rank = f"{trial.rank}{' *' if several and trial.front else ''}" if trial.rank else trial.state
    cells = [field(name, trial.metrics.get(name)) for name in names]
    link = _link(str(trial.number), trial.number, links)
    return [chosen(trial.parameters), rank, link, *cells, f"{number(trial.metrics.get('seconds'), 3)} s"]


def _link(text: str, number: int, links: Mapping[int, str]) -> str | dict[str, str]:
    return {"text": text, "href": links[number]} if number in links else text
