"""Confidence intervals of one network's numbers: Wilson's for a share, the normal one for a mean."""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

_Z = NormalDist().inv_cdf(0.975)


def wilson_interval(successes: int, samples: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927), as fractions."""
    n, z, p = samples, _Z, successes / samples
    middle, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + side * width) / (1 + z * z / n) for side in (-1, 1))
    return min(p, low), max(p, high)  # rounding must not exclude p itself


def mean_interval(values: Tensor) -> tuple[float, float] | None:
    """Return the 95 % normal interval of the mean of ``values`` (N,); None for a single or a non-finite value."""
    values = values.double()
    mean = float(values.mean())
    half = _Z * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return (mean - half, mean + half) if math.isfinite(mean) and math.isfinite(half) else None
