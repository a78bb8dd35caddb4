"""How many samples would settle what these cannot: where the limits would lie if more of them showed the same rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from prunetaylor.core.results.outcome import Drop

MOST = 10**9
"""Beyond this nobody has the samples, and None says so."""


def pairs_to_settle(
    lost: int, won: int, samples: int, limit: float, limits: Callable[[Any, Any, Any], tuple[float, float]]
) -> int | None:
    """The smallest number of pairs with these rates of flips whose one-sided limits do not enclose ``limit`` (pp).

    ``limits`` gives them from (lost, won, samples). None where more than ``MOST`` would be needed, as where the drop is
    the limit itself. As the limits close in steadily, bisection finds it.
    """

    def open_at(n: int) -> bool:
        low, high = limits(lost * n / samples, won * n / samples, n)
        return low <= limit < high

    if open_at(MOST):
        return None
    few, enough = 1, MOST
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (middle, enough) if open_at(middle) else (few, middle)
    return enough


def values_to_settle(drop: Drop, samples: int, limit: float, reach: float = 0.0) -> int | None:
    """The same for a mean. Of the distance from it to its limits, noise shrinks with the root of the number of samples.

    What samples that were not seen may add, up to ``reach`` each, shrinks with the number itself: with u = 1 / sqrt(n)
    the distance is a u + b u^2, b = -ln(0.05) reach.
    """
    distance = abs(limit - drop.value)
    width = abs((drop.high if drop.value <= limit else drop.low) - drop.value)
    b = min(-math.log(0.05) * reach, width * samples)
    a = (width - b / samples) * math.sqrt(samples)
    if distance == 0:
        return None
    u = 2 * distance / (a + math.sqrt(a * a + 4 * b * distance))
    return None if u * u * MOST < 1 else math.ceil(1 / (u * u))
