"""Figures become SVG inside a page: text stays text, and the colours are the page's own, for light and dark.

matplotlib draws in stand-in colours, which become the variables of the page's style sheet. Text from files is never
read as mathematics, and no axis shows impossible values (a share beyond 100 %).
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from prunetaylor.core.text import neutral_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID, CARD = "#010101", "#020202", "#030303", "#070707"
PRIMARY, ACCENT, BAND = "#040404", "#050505", "#060606"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    CARD: "card",
    PRIMARY: "first",
    ACCENT: "second",
    BAND: "band",
}
WIDTH, HEIGHT = 5.0, 3.1
"""Inches: at 360 pixels wide a letter has still its 10."""
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
_LETTER = (5.2, 11.0)  # points wide and high, of the names beside points

Which = Literal["x", "y"]


def svg(title: str, draw: Callable[..., None], height: float = HEIGHT, rows: int = 1) -> str:
    """Return the figure that ``draw`` draws on ``rows`` axes, one above the other with a common x-axis."""
    # It tells about its font cache on stderr, which is the run's.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has fonts of its own
        matplotlib.rcdefaults()  # a user's own style would bring colours that no page knows
        matplotlib.rcParams.update({**_SETTINGS, "svg.hashsalt": title})
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, sharex=True, squeeze=False)[:, 0]
        draw(*axes)
        figure.align_ylabels(axes)
        file = io.StringIO()
        bare = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=bare)
    return neutral_lines(_embedded(file.getvalue(), title))


def limit_axis(axes: Axes, which: Which, low: float = 0.0, high: float = 100.0) -> None:
    """Give the axis a small margin around its data, but none beyond ``low`` and ``high``."""
    start, end = getattr(axes.dataLim, f"interval{which}")
    room = 0.06 * (end - start) or 1.0
    getattr(axes, f"set_{which}lim")(max(min(low, start), start - room), min(max(high, end), end + room))


def log_axis(axes: Axes, which: Which, ends: tuple[float, float]) -> None:
    """Make the axis logarithmic between the two ``ends``, with plain numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(*ends)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] / ends[0] < 50 else (1,), numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_formatter(NullFormatter())


def count_axis(axes: Axes, which: Which, unit: str = "") -> None:
    """Label the ticks with short counts: 20 k, 1.5 M."""
    from matplotlib.ticker import EngFormatter

    getattr(axes, f"{which}axis").set_major_formatter(EngFormatter(unit=unit, sep=" "))


def power_axis(axes: Axes, which: Which) -> None:
    """Label an axis of logarithms with the numbers themselves: -3 as 0.001."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(10.0**value)))


def plain(value: float) -> str:
    """Return a number as a tick shows it: 0.01, 200, 1e-6."""
    mantissa, sign, power = f"{value:g}".partition("e")
    return f"{mantissa}e{int(power)}" if sign else mantissa


def labels(
    axes: Axes, points: Sequence[tuple[float, float, str]], inches: tuple[float, float] = (WIDTH, HEIGHT)
) -> None:
    """Write names beside their points where they fit; names that would overlap are left out.

    Call it after everything else is drawn; ``inches`` is the least size of the figure.
    """
    axes.autoscale_view()
    width, height = 72 * inches[0] * 0.82, 72 * inches[1] * 0.75  # of the axes in points, about
    places = [axes.transAxes.inverted().transform(axes.transData.transform((x, y))) for x, y, _ in points]
    at = [(px * width, py * height) for px, py in places]
    taken = [(px - 3, py - 3, px + 3, py + 3) for px, py in at]
    for (x, y, name), (px, py) in zip(points, at, strict=True):
        wide, high = _LETTER[0] * len(name), _LETTER[1]
        for dx, dy in ((5, 3), (5, -high - 3), (-5 - wide, 3), (-5 - wide, -high - 3), (-wide / 2, 6)):
            box = (px + dx, py + dy, px + dx + wide, py + dy + high)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                axes.annotate(name, (x, y), (dx, dy), textcoords="offset points", fontsize=9, parse_math=False)
                break


Box = tuple[float, float, float, float]


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _embedded(text: str, title: str) -> str:
    """Return the figure for a page: without metadata, with ids of its own and the page's size and colours."""
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
    return f'<svg {space} {box[0]} role="img" aria-label="{escape(title)}">{body.strip()}'
