"""Accuracy against cost with the Pareto front, as SVG and PNG."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunetaylor.core.files import write_bytes
from prunetaylor.core.results.sweep import field_sign
from prunetaylor.core.text import neutral
from prunetaylor.report.html.drawing import labels
from prunetaylor.report.titles import axis_title

_SIZE = (7.0, 4.5)  # inches


@dataclass(frozen=True)
class Point:
    """A network: its cost, its accuracy with a 95 % interval (None: unknown), and its name."""

    cost: float
    value: float
    interval: tuple[float, float] | None
    name: str


def pareto(points: Sequence[Point], sign: int, cost: str) -> list[Point]:
    """Return the points that no other beats in both cost and value, cheapest first; ``sign`` is 1 if larger
    is better.
    """
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (-field_sign(cost) * one.cost, -sign * one.value)):
        if not front or sign * point.value > sign * front[-1].value:
            front.append(point)
    return front


def draw(points: Sequence[Point], *, value: str, sign: int, cost: str, title: str, files: Sequence[Path]) -> None:
    """Draw the points into each of ``files``; its suffix selects the format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    front = pareto(points, sign, cost)
    best = {(point.cost, point.value) for point in front}
    for point in points:
        colour = "C0" if (point.cost, point.value) in best else "0.6"
        low, high = point.interval or (point.value, point.value)
        bars = [[max(0.0, point.value - low)], [max(0.0, high - point.value)]]
        axes.errorbar([point.cost], [point.value], yerr=bars, fmt="o", color=colour, capsize=2, markersize=4, lw=0.8)
    axes.plot([p.cost for p in front], [p.value for p in front], color="C0", lw=1, label="Pareto front", gid="front")
    axes.set_xlabel(axis_title(cost))
    axes.set_ylabel(f"{axis_title(value)}, ranking samples (95 % interval)")
    axes.set_title(neutral(title, 80), loc="left", fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8)
    labels(axes, [(p.cost, p.value, p.name) for p in (*front, *(p for p in points if p not in front))], _SIZE)
    for file in files:
        image = io.BytesIO()
        bare = {"Date": None} if file.suffix == ".svg" else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in letters that no font here has
            figure.savefig(image, format=file.suffix[1:], dpi=150, metadata=bare)
        write_bytes(file, image.getvalue())
