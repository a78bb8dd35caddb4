"""The number of samples that would decide an inconclusive limit, if more samples showed the same rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from prunetaylor.core.results.outcome import Drop

MAX_SAMPLES = 10**9
"""The largest number of samples that is worth naming."""


def pairs_needed(
    lost: int, won: int, samples: int, limit: float, limits: Callable[[Any, Any, Any], tuple[float, float]]
) -> int | None:
    """Return the smallest number of pairs, at these rates of flips, whose limits do not enclose ``limit`` (pp).

    ``limits`` maps (lost, won, samples) to the limits. None where more than ``MAX_SAMPLES`` would be needed, for
    instance where the drop equals the limit. The limits narrow monotonically, so bisection finds the number.
    """

    def encloses(n: int) -> bool:
        low, high = limits(lost * n / samples, won * n / samples, n)
        return low <= limit < high

    if encloses(MAX_SAMPLES):
        return None
    few, enough = 1, MAX_SAMPLES
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (middle, enough) if encloses(middle) else (few, middle)
    return enough


def values_needed(drop: Drop, samples: int, limit: float, largest_change: float = 0.0) -> int | None:
    """Return the number of samples that would decide a limit on a mean; None where it exceeds ``MAX_SAMPLES``.

    The distance from the mean to its limits has two parts. Noise shrinks with the root of the number of samples n; the
    allowance for rare samples, which may add up to ``largest_change`` each, shrinks with n itself. With u = 1 / sqrt(n)
    the distance is a u + b u^2, b = -ln(0.05) largest_change.
    """
    distance = abs(limit - drop.value)
    width = abs((drop.high if drop.value <= limit else drop.low) - drop.value)
    b = min(-math.log(0.05) * largest_change, width * samples)
    a = (width - b / samples) * math.sqrt(samples)
    if distance == 0:
        return None
    u = 2 * distance / (a + math.sqrt(a * a + 4 * b * distance))
    return None if u * u * MAX_SAMPLES < 1 else math.ceil(1 / (u * u))
