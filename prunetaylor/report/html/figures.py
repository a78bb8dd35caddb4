"""The figures of reports. Each takes plain values of a report's JSON, and returns None if there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from prunetaylor.core.results.metric import describe_metric
from prunetaylor.core.results.sweep import COSTS
from prunetaylor.report.formats import shorten
from prunetaylor.report.html.drawing import (
    ACCENT,
    BAND,
    CARD,
    HEIGHT,
    INK,
    MUTED,
    PRIMARY,
    count_axis,
    labels,
    limit_axis,
    log_axis,
    power_axis,
    svg,
)
from prunetaylor.report.measured_drop import measured_drop
from prunetaylor.report.pareto import Point, pareto
from prunetaylor.report.titles import axis_title, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELLED = 24
"""Layers that can be told apart by name along an axis."""
_CLASSES = 10
_ROW = 0.25  # inches

Document = Mapping[str, Any]


def sparsity_by_layer(layers: Sequence[Document]) -> str | None:
    """Draw a bar for each layer, with its name if there are few."""
    if not layers:
        return None
    values = [100 * layer["sparsity"] for layer in layers]
    few = len(layers) <= _LABELLED

    def draw(axes: Axes) -> None:
        if few:
            axes.barh(range(len(layers)), values, color=PRIMARY)
            axes.set_yticks(range(len(layers)), [shorten(layer["name"], 22) for layer in layers])
            axes.set_ylim(max(len(layers), 4) - 0.4, -0.6)
            axes.set_xlim(0, 100)
            axes.set_xlabel("removed, %")
            axes.grid(axis="y", visible=False)
        else:
            axes.bar(range(len(layers)), values, width=1.0, color=PRIMARY)
            axes.set_xlim(-0.5, len(layers) - 0.5)
            axes.set_ylim(0, 100)
            axes.set_xlabel("layer, in the order in which they run")
            axes.set_ylabel("removed, %")

    return svg("Sparsity by layer", draw, height=max(HEIGHT, 0.6 + 0.21 * len(layers)) if few else HEIGHT)


def saliency(histogram: Document | None) -> str | None:
    """Draw the scores of the last stage, separately for removed and kept weights, and the threshold."""
    if histogram is None:
        return None
    edges, threshold = histogram["edges"], histogram["threshold"]

    def draw(axes: Axes) -> None:
        axes.stairs(histogram["removed"], edges, fill=True, color=ACCENT, alpha=0.75, label="removed")
        axes.stairs(histogram["kept"], edges, fill=True, color=PRIMARY, alpha=0.75, label="kept")
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1, linestyle="--", label="largest removed")
        axes.set_xlabel("score")
        axes.set_ylabel("weights")
        power_axis(axes, "x")
        count_axis(axes, "y")
        axes.legend()

    return svg("Scores of removed and kept weights", draw)


def predictions(stages: Sequence[Document]) -> str | None:
    """Draw measured against predicted change since the dense network after each stage, and mark those that are off.

    These are the values of the prediction check; an older report has each stage's own change.
    """
    points = [(_since(stage), _fate(stage)) for stage in stages]
    shown = [((x, y), fate) for (x, y), fate in points if (x or 0) > 0 and (y or 0) > 0]
    if not shown:
        return None

    def draw(axes: Axes) -> None:
        numbers = [number for pair, _ in shown for number in pair]
        ends = (min(numbers) / 2.5, max(numbers) * 2.5)
        axes.fill_between(ends, [x / 2 for x in ends], [x * 2 for x in ends], color=BAND, label="within a factor of 2")
        axes.plot(ends, ends, color=MUTED, linewidth=1)
        marks = {"stage": ("o", PRIMARY, PRIMARY), "off": ("X", ACCENT, ACCENT), "taken back": ("o", PRIMARY, CARD)}
        for label, (mark, color, face) in marks.items():
            pairs = [pair for pair, fate in shown if fate == label]
            if pairs:
                x, y = zip(*pairs, strict=True)
                axes.plot(x, y, mark, color=color, markerfacecolor=face, markersize=5, linestyle="none", label=label)
        log_axis(axes, "x", ends)
        log_axis(axes, "y", ends)
        axes.set_xlabel("predicted change of the error since the dense network")
        axes.set_ylabel("measured")
        axes.legend()

    return svg("Predicted and measured change by stage", draw)


def _since(stage: Document) -> tuple[Any, Any]:
    """Return (predicted, measured) change since the dense network, or of the stage if that is not in the report."""
    if stage.get("cumulative_predicted") is None:
        return stage["predicted_change"], stage["measured_change"]
    return stage["cumulative_predicted"], stage.get("cumulative_measured")


def _fate(stage: Document) -> str:
    """Return the stage's class in the prediction check."""
    if not stage["accepted"]:
        return "taken back"
    return "off" if stage.get("believed") is False else "stage"


def metric_by_stage(document: Document) -> tuple[str | None, str]:
    """Draw the metric against sparsity on one kind of samples, and return a caption that names it.

    Held-out samples are used by stage, else the test samples.
    """
    name = document["metric"]["name"]
    stages = [s for s in document["stages"] if s.get("metric") is not None and s["accepted"]]
    test = [(document[side]["metrics"].get(name)) for side in ("dense", "pruned")]
    if len(stages) > 1:
        points = [(100 * s["sparsity"], s["metric"]) for s in stages]
        caption = "Measured after each stage, before fine-tuning, on held-out calibration samples."
    elif None not in test:
        points = [(0.0, test[0]), (100 * document["sparsity"]["obtained"], test[1])]
        caption = "The dense and the pruned network on the test samples."
    else:
        return None, ""

    def draw(axes: Axes) -> None:
        axes.plot(*zip(*points, strict=True), "o-", color=PRIMARY, markersize=5, clip_on=False, zorder=3)
        limit_axis(axes, "x")
        if describe_metric(name).is_share:
            limit_axis(axes, "y")
        axes.set_xlabel("sparsity, %")
        axes.set_ylabel(axis_title(name))

    return svg(f"{axis_title(name)} vs sparsity", draw), caption


def finetuning(epochs: Sequence[Document], metric: str) -> str | None:
    """Draw the training loss and the validation metric of every epoch, and the sparsity if it changes."""
    if not epochs:
        return None
    sparsities = [one.get("sparsity") for one in epochs]
    gradual = None not in sparsities and len(set(sparsities)) > 1

    def draw(*axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        numbers = [one["epoch"] for one in epochs]
        drawn = [("training loss", [_number(one["loss"]) for one in epochs], ACCENT)]
        drawn.append((f"validation {axis_title(metric)}", [_number(one["validation"]) for one in epochs], PRIMARY))
        if gradual:
            drawn.append(("sparsity, %", [100 * s for s in sparsities if s is not None], MUTED))
        for one, (label, values, colour) in zip(axes, drawn, strict=True):
            one.plot(numbers, values, "o-", color=colour, markersize=4, clip_on=False, zorder=3)
            one.set_ylabel(label.replace(" ", "\n", 1))
            if label.endswith("%"):
                limit_axis(one, "y")
        axes[-1].set_xlabel("epoch")
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes[-1].set_xlim(min(numbers) - 0.5, max(numbers) + 0.5)

    rows = 3 if gradual else 2
    return svg("Fine-tuning", draw, height=0.5 + 1.3 * rows, rows=rows)


def class_drops(classes: Sequence[Document]) -> str | None:
    """Draw the classes that lost most, each with its interval."""
    worst = [one for one in classes if one["lost"] or one["won"]][:_CLASSES]
    return _intervals("Drop by class", [(f"class {one['label']}", one["drop"]) for one in worst])


def drops_of_runs(names: Sequence[str], documents: Sequence[Document]) -> str | None:
    """Draw each run's drop with its interval in a row of its own, the sparsest last; None if their units differ."""
    rows: list[tuple[str, Document]] = []
    units: set[str] = set()
    for name, one in sorted(zip(names, documents, strict=True), key=lambda pair: pair[1]["sparsity"]["obtained"]):
        described, drop = measured_drop(one)
        if drop is not None and math.isfinite(drop.high - drop.low):
            rows.append((f"{shorten(name, 22)} ({100 * one['sparsity']['obtained']:.0f} %)", asdict(drop)))
            units.add("pp" if described.is_share else title(described.name))
    return _intervals("Drop of each run", rows, units.pop()) if len(units) == 1 else None


def accuracy_against_cost(points: Sequence[Point], *, value: str, sign: int, cost: str) -> str | None:
    """Draw every trial of a sweep with its number, and a line along the Pareto front, as ``pareto.draw`` does."""
    if not points:
        return None
    front = pareto(points, sign, cost)
    others = [one for one in points if one not in front]

    def draw(axes: Axes) -> None:
        axes.plot([one.cost for one in front], [one.value for one in front], color=PRIMARY, linewidth=1)
        for group, colour, name in ((front, PRIMARY, "Pareto front"), (others, MUTED, "other trials")):
            if not group:
                continue
            ends = [one.interval or (one.value, one.value) for one in group]
            bars = [
                [max(0.0, one.value - low) for one, (low, _) in zip(group, ends, strict=True)],
                [max(0.0, high - one.value) for one, (_, high) in zip(group, ends, strict=True)],
            ]
            x, y = [one.cost for one in group], [one.value for one in group]
            axes.errorbar(
                x,
                y,
                yerr=bars,
                fmt="o",
                color=colour,
                capsize=2,
                markersize=5,
                linewidth=0.8,
                label=name,
                clip_on=False,
            )
        if cost == "sparsity" or describe_metric(cost).is_share:
            limit_axis(axes, "x", high=1.0 if cost == "sparsity" else 100.0)
        elif cost in COSTS:
            count_axis(axes, "x", {"bytes": "B", "seconds": "s"}.get(cost, ""))
        if describe_metric(value).is_share:
            limit_axis(axes, "y")
        axes.set_xlabel(axis_title(cost))
        axes.set_ylabel(axis_title(value))
        axes.legend()
        labels(axes, [(one.cost, one.value, one.name) for one in (*front, *others)])

    return svg("Accuracy vs cost", draw, height=1.3 * HEIGHT)


def _intervals(caption: str, rows: Sequence[tuple[str, Document]], unit: str = "pp") -> str | None:
    """Draw the value and the interval of each drop in a row of its own."""
    if not rows:
        return None

    def draw(axes: Axes) -> None:
        places = range(len(rows))
        values = [drop["value"] for _, drop in rows]
        errors = [[d["value"] - d["low"] for _, d in rows], [d["high"] - d["value"] for _, d in rows]]
        axes.errorbar(values, places, xerr=errors, fmt="o", color=ACCENT, ecolor=ACCENT, capsize=3, markersize=5)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(places, [name for name, _ in rows])
        axes.set_ylim(max(len(rows), 2) - 0.4, -0.6)
        axes.set_xlabel(f"drop, {unit}, with its 95 % interval")
        axes.grid(axis="y", visible=False)

    return svg(caption, draw, height=0.8 + _ROW * max(len(rows), 3))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
