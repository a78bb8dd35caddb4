"""Figures of a report as SVG that goes into a page: text stays text, colours are the page's own, for light and dark.

matplotlib draws in stand-in colours, which become the variables of the page's style sheet. Every figure takes plain
values of a report's JSON; None where it has nothing to show. Text from files is never taken for mathematics.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunetaylor.report.terminal import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_FIRST, _SECOND, _BAND = "#040404", "#050505", "#060606"
_VARIABLES = {_INK: "ink", _MUTED: "muted", _GRID: "grid", _FIRST: "first", _SECOND: "second", _BAND: "band"}
_SIZE = (5.0, 3.1)
"""Inches: at 360 pixels wide a letter has still its 10."""
_LABELLED = 24
"""Layers that can be told apart by name along an axis."""
_CLASSES = 10

Document = Mapping[str, Any]


def sparsity_by_layer(layers: Sequence[Document]) -> str | None:
    """A bar a layer; named where there are few."""
    if not layers:
        return None
    values = [100 * layer["sparsity"] for layer in layers]
    few = len(layers) <= _LABELLED

    def draw(axes: Axes) -> None:
        if few:
            axes.barh(range(len(layers)), values, color=_FIRST)
            axes.set_yticks(range(len(layers)), [shorten(layer["name"], 22) for layer in layers])
            axes.invert_yaxis()
            axes.set_xlim(0, 100)
            axes.set_xlabel("removed, %")
            axes.grid(axis="y", visible=False)
        else:
            axes.bar(range(len(layers)), values, width=1.0, color=_FIRST)
            axes.set_ylim(0, 100)
            axes.set_xlabel("layer, in the order in which they run")
            axes.set_ylabel("removed, %")

    return _svg("Sparsity by layer", draw, height=max(_SIZE[1], 0.5 + 0.21 * len(layers)) if few else _SIZE[1])


def saliency(histogram: Document | None) -> str | None:
    """Scores of the last stage, apart for what went and what stays, and the line between them."""
    if histogram is None:
        return None
    edges, threshold = histogram["edges"], histogram["threshold"]

    def draw(axes: Axes) -> None:
        axes.stairs(histogram["removed"], edges, fill=True, color=_SECOND, alpha=0.75, label="removed")
        axes.stairs(histogram["kept"], edges, fill=True, color=_FIRST, alpha=0.75, label="kept")
        if threshold is not None:
            axes.axvline(threshold, color=_INK, linewidth=1, linestyle="--", label="largest removed")
        axes.set_xlabel("log10 of the score")
        axes.set_ylabel("weights")
        axes.legend()

    return _svg("Saliency in the last stage", draw)


def predictions(stages: Sequence[Document]) -> str | None:
    """Each stage's measured change against the predicted one, with the band in which the model is believed."""
    shown = [s for s in stages if (s["predicted_change"] or 0) > 0 and (s["measured_change"] or 0) > 0]
    if not shown:
        return None

    def draw(axes: Axes) -> None:
        numbers = [s[key] for s in shown for key in ("predicted_change", "measured_change")]
        ends = [min(numbers) / 2.5, max(numbers) * 2.5]
        axes.fill_between(ends, [x / 2 for x in ends], [x * 2 for x in ends], color=_BAND, label="within a factor of 2")
        axes.plot(ends, ends, color=_MUTED, linewidth=1)
        for stands, label, face in ((True, "stage", _FIRST), (False, "taken back", "none")):
            points = [s for s in shown if s["accepted"] is stands]
            if points:
                x, y = ([s[key] for s in points] for key in ("predicted_change", "measured_change"))
                axes.plot(x, y, "o", color=_FIRST, markerfacecolor=face, markersize=5, label=label)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(*ends)
        axes.set_xlabel("predicted change of the error")
        axes.set_ylabel("measured")
        axes.legend()

    return _svg("Predicted and measured change by stage", draw)


def metric_by_stage(document: Document) -> str | None:
    """The metric on held-out calibration samples after each stage, and on the test samples before and after all."""
    name = document["metric"]["name"]
    stages = [s for s in document["stages"] if s.get("metric") is not None and s["accepted"]]
    test = [(document[side]["metrics"].get(name)) for side in ("dense", "pruned")]
    if not stages and None in test:
        return None

    def draw(axes: Axes) -> None:
        if stages:
            x, y = [100 * s["sparsity"] for s in stages], [s["metric"] for s in stages]
            axes.plot(x, y, "o-", color=_FIRST, markersize=4, label="held-out calibration samples")
        if None not in test:
            drop, end = document["drop_pp"], 100 * document["sparsity"]["obtained"]
            errors = None
            if drop is not None and name == "top1":
                errors = [[0, drop["high"] - drop["value"]], [0, drop["value"] - drop["low"]]]
            axes.errorbar(
                [0, end],
                test,
                yerr=errors,
                fmt="s",
                color=_SECOND,
                markersize=5,
                capsize=3,
                label="test samples",
            )
        axes.set_xlabel("sparsity, %")
        axes.set_ylabel(_unit(name))
        axes.legend()

    return _svg("Accuracy against sparsity" if name == "top1" else f"{name} against sparsity", draw)


def finetuning(epochs: Sequence[Document], metric: str) -> str | None:
    """The training loss and the validation metric of every epoch."""
    if not epochs:
        return None

    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        numbers = [one["epoch"] for one in epochs]
        axes.plot(numbers, [_number(one["loss"]) for one in epochs], "o-", color=_FIRST, markersize=4)
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss", color=_FIRST)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(0.5, len(epochs) + 0.5)
        other = axes.twinx()
        other.plot(numbers, [_number(one["validation"]) for one in epochs], "s-", color=_SECOND, markersize=4)
        other.set_ylabel(f"validation {_unit(metric)}", color=_SECOND)
        other.grid(visible=False)
        _plain(other)

    return _svg("Fine-tuning", draw)


def class_drops(classes: Sequence[Document]) -> str | None:
    """The classes that lost most, each with its interval."""
    worst = [one for one in classes if one["lost"] or one["won"]][:_CLASSES]
    if not worst:
        return None

    def draw(axes: Axes) -> None:
        drops = [one["drop"] for one in worst]
        values = [drop["value"] for drop in drops]
        errors = [[d["value"] - d["low"] for d in drops], [d["high"] - d["value"] for d in drops]]
        axes.barh(range(len(worst)), values, color=_SECOND, xerr=errors, ecolor=_INK, capsize=2, height=0.7)
        axes.set_yticks(range(len(worst)), [f"class {one['label']}" for one in worst])
        axes.set_ylim(max(len(worst), 5) - 0.5, -0.5)
        axes.axvline(0, color=_INK, linewidth=1)
        axes.set_xlabel("drop, pp, with its 95 % interval")
        axes.grid(axis="y", visible=False)

    return _svg("Drop by class", draw)


def drops_of_runs(names: Sequence[str], documents: Sequence[Document]) -> str | None:
    """Each run's drop against its sparsity, with its interval."""
    known = [(name, one) for name, one in zip(names, documents, strict=True) if one["drop_pp"] is not None]
    if not known:
        return None

    def draw(axes: Axes) -> None:
        for name, one in known:
            drop, x = one["drop_pp"], 100 * one["sparsity"]["obtained"]
            error = [[drop["value"] - drop["low"]], [drop["high"] - drop["value"]]]
            axes.errorbar([x], [drop["value"]], yerr=error, fmt="o", color=_FIRST, capsize=3, markersize=5)
            axes.annotate(shorten(name, 24), (x, drop["value"]), (6, 4), textcoords="offset points", parse_math=False)
        axes.margins(x=0.25)
        axes.set_xlabel("sparsity, %")
        axes.set_ylabel("drop, pp")

    return _svg("Drop against sparsity", draw)


def _unit(metric: str) -> str:
    return "top-1, %" if metric == "top1" else metric


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _svg(title: str, draw: Callable[[Axes], None], height: float = _SIZE[1]) -> str:
    # It tells about its font cache on stderr, which is the run's.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.size": 11,
        "text.parse_math": False,
        "axes.edgecolor": _MUTED,
        "axes.labelcolor": _INK,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": _GRID,
        "text.color": _INK,
        "xtick.color": _MUTED,
        "ytick.color": _MUTED,
        "legend.frameon": False,
        "legend.fontsize": 9,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(_SIZE[0], height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        _plain(axes)
        file = io.StringIO()
        bare = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=bare)
    return _embedded(file.getvalue(), title)


def _plain(axes: Axes) -> None:
    """Labels of ticks as they are: a name of a layer may hold dollar signs."""
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(axes.get_xscale() == "log")


def _embedded(text: str, title: str) -> str:
    """The figure without what only a file needs, its names its own, its size and colours the page's."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]+"', head)
    assert box is not None  # matplotlib writes one
    prefix = re.sub(r"\W+", "-", title.lower())
    body = re.sub(r'(\sid="|url\(#|xlink:href="#)', rf"\g<1>{prefix}-", body)
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"\s*\n\s*", "\n", body)
    space = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {space} {box[0]} role="img" aria-label="{title}">{body.strip()}'
