"""Numbers, names and settings as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prunetaylor.core.results.metric import describe_metric
from prunetaylor.core.text import neutral

if TYPE_CHECKING:
    from prunetaylor.core.results.metric import MetricDescription
    from prunetaylor.core.results.outcome import Drop, Flips

_NAME_WIDTH = 34

_LINE = 2000


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with ``digits`` significant digits; a dash if it is unknown."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def count(value: int | None) -> str:
    """Return 1,234 for counts up to a million, then 1.23 M and so on; a dash if it is unknown."""
    if value is None:
        return "-"
    for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:,}"


def size(value: int) -> str:
    """Return bytes in decimal units."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value} B"


def flipped(flips: Flips) -> str:
    """Return how many samples the pruned network lost and won, and the p-value of so uneven a split."""
    return f"{flips.lost:,} lost, {flips.won:,} won; McNemar's exact p {number(flips.mcnemar_p, 3)}"


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with two decimals."""
    return f"{100 * fraction:.2f} %"


def shorten(name: str, width: int = _NAME_WIDTH) -> str:
    """Return a name in one line of at most ``width`` characters; a long one keeps both ends, which tell it apart."""
    name = neutral(name, _LINE)
    if len(name) <= width:
        return name
    tail = width * 2 // 3
    return f"{name[: width - tail - 2]}..{name[-tail:]}"


def metric(name: str, value: float | None) -> str:
    """Return a metric with its unit: a share in percent, others with four decimals; a dash if it is unknown."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:.2f} %" if describe_metric(name).is_share else f"{value:.4f}"


def change(name: str, before: float, after: float) -> str:
    """Return the change of a metric with its sign: of a share in percentage points."""
    share = describe_metric(name).is_share
    digits = 2 if share else 4
    return f"{round(after - before, digits) + 0.0:+.{digits}f}{' pp' if share else ''}"  # + 0.0: there is no -0.00


def drop_label(metric: MetricDescription) -> str:
    """Return how a change for the worse is called: "drop", or "rise of" a metric that should be small."""
    return "drop" if metric.goal == "max" else f"rise of {metric.title}"


def drop_amount(value: float, unit: str) -> str:
    """Return the size of a drop with its unit: points if the metric's ``unit`` is %, else a number."""
    return f"{value:.2f} pp" if unit == "%" else number(value)


def drop_text(drop: Drop, unit: str) -> str:
    """Return a drop with its paired interval; ``unit`` is the metric's."""
    value, low, high = (drop_amount(x, unit) for x in (drop.value, drop.low, drop.high))
    limits = "no interval" if math.isinf(drop.high) else f"95 % interval {low.removesuffix(' pp')} to {high}"
    return f"{value}, {limits}"


def first_order(kept: bool, labels: bool) -> str:
    """Return whether the first-order term of the error with labels was kept, as the end of a sentence."""
    if not labels:
        return " with labels, which are not used"
    return ", kept" if kept else ", not kept"


def settings(parameters: Mapping[str, Any]) -> str:
    """Return a trial's settings as text, each by the last part of its key."""
    return ", ".join(f"{key.rpartition('.')[2]}={plain(value)}" for key, value in parameters.items())


def quantity(name: str, value: float | None) -> str:
    """Return a quantity of a trial's result in its own unit."""
    if value is None:
        return "-"
    if describe_metric(name).is_share:
        return f"{value:.2f} %"
    if name == "sparsity":
        return f"{value:.2%}".replace("%", " %")
    if name == "bytes":
        return size(int(value))
    return count(int(value)) if name in ("nonzero", "flops", "flops_nonzero", "parameters") else number(value)


def plain(value: Any) -> str:
    """Return the value of a setting as text; floats have six significant digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
