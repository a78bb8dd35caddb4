"""Compare two networks on the same samples: the drop from one to the other with a paired confidence interval.

Sign: drop = dense - pruned, so that a positive drop is a loss. The samples are the same, so most of the noise of either
accuracy cancels: only the samples on which the networks disagree count.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from prunetaylor.core.errors import DataError, NumericsError
from prunetaylor.core.results.outcome import Drop

_RESAMPLES = 2000
_CHUNK = 2_000_000  # weights drawn at a time: bounds the memory of the bootstrap to some tens of MB


def drop_interval(dense_correct: Tensor, pruned_correct: Tensor, level: float = 0.95) -> Drop:
    """Return the drop in accuracy, in percentage points, with Tango's score interval for paired proportions.

    Tango (1998), Statistics in Medicine 17:891-908. It keeps its coverage with few or no disagreements, where the
    usual Wald interval has no width at all.

    Args:
        dense_correct: (N,) boolean, whether the dense network is right on each sample.
        pruned_correct: (N,) boolean, the same for the pruned network, in the same order.
        level: confidence in (0, 1).

    Raises:
        DataError: no samples, or two different numbers of them.
    """
    _check_pairs(dense_correct, pruned_correct, level)
    if dense_correct.dtype != torch.bool or pruned_correct.dtype != torch.bool:
        raise TypeError(f"expected boolean tensors, got {dense_correct.dtype} and {pruned_correct.dtype}")
    pruned_correct = pruned_correct.to(dense_correct.device)
    lost = int((dense_correct & ~pruned_correct).sum())
    won = int((~dense_correct & pruned_correct).sum())
    low, high = tango(lost, won, len(dense_correct), level)
    return Drop(100 * (lost - won) / len(dense_correct), 100 * low, 100 * high)


def tango(b: float, c: float, n: float, level: float = 0.95, correction: float = 0.0) -> tuple[float, float]:
    """Return the limits of the difference (b - c) / n of two paired proportions, by Tango's score method.

    The interval is the set of all differences D that the score test does not reject, |T(D)| <= z, with

        T(D) = (b - c - n D) / sqrt(n (2 q + D (1 - D))),
        q    = (sqrt(B^2 - 4 A C) - B) / 2A,   A = 2n,   B = -b - c + (2n - b + c) D,   C = -c D (1 - D)

    where q is the maximum-likelihood estimate of the second discordant probability under D.

    Args:
        b: pairs in which only the first is a success.
        c: pairs in which only the second is one.
        n: all pairs.
        correction: for continuity: |b - c - n D| counts so many pairs less, which widens the interval. With 1/2 neither
            limit of an interval at level 1 - 2a lies on the wrong side more often than a (benchmarks/README.md).
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return _tango_low(b, c, n, z, correction), -_tango_low(c, b, n, z, correction)


def _tango_low(b: float, c: float, n: float, z: float, correction: float) -> float:
    """Return the lower limit, left of which T(D) > z, by bisection down to neighbouring floats: T is decreasing."""
    low, high = -1.0, max(-1.0, (b - c - correction) / n)
    while low < (middle := (low + high) / 2) < high:
        if _rejected(b - c - correction - n * middle, b, c, n, middle, z):
            low = middle
        else:
            high = middle
    return high


def _rejected(excess: float, b: float, c: float, n: float, d: float, z: float) -> bool:
    """Return True if T(d)^2 > z^2, with ``excess`` as T's numerator; no quotient, as the variance may be zero."""
    q_b = -b - c + (2 * n - b + c) * d
    q_c = -c * d * (1 - d)
    q = (math.sqrt(max(q_b * q_b - 8 * n * q_c, 0.0)) - q_b) / (4 * n)
    variance = n * (2 * q + d * (1 - d))
    return excess * excess > z * z * max(variance, 0.0)


def bootstrap_interval(
    dense_values: Tensor,
    pruned_values: Tensor,
    generator: torch.Generator,
    level: float = 0.95,
    reach: float | None = None,
) -> Drop:
    """Return the mean of ``dense - pruned``, in the values' unit, with limits by a cautious bootstrap of 2,000 draws.

    For a metric that is a mean over samples but not a share of them (a loss, an error). With x the sample's values, the
    upper limit at 1 - a is the 1 - a quantile of

        w_1 x_1 + ... + w_n x_n + w_(n+1) max(x),    w uniform on the simplex (Dirichlet(1, ..., 1)),

    and the lower one its mirror image, with the minimum. That is Rubin's Bayesian bootstrap (1981, Annals of Statistics
    9:130-134) with one sample more, at the extreme: Gaffke's bound (2005, Mathematical Methods of Statistics
    14:451-467) with the largest value seen for the largest possible. Of zeros and ones it is Clopper and Pearson's.
    A few samples make most of a loss: a test set tends to miss the largest rises, and then both its mean and its
    spread are too small. The percentile interval and bootstrap-t suffer from that (benchmarks/README.md).

    With ``reach`` the sample more is not the largest seen but the largest possible. Then the limits hold for every
    distribution within it, however rare its large values are: where n samples show none, up to 3 / n of all may be one,
    and the upper limit is about 3 reach / n.

    Args:
        dense_values: (N,) the metric of each sample for the dense network.
        pruned_values: (N,) the same for the pruned network, in the same order.
        generator: CPU generator that draws the weights.
        level: confidence in (0, 1).
        reach: how large the difference of a sample may be, to either side.

    Raises:
        DataError: fewer than two samples, or two different numbers of them.
        NumericsError: values that are not finite.
    """
    _check_pairs(dense_values, pruned_values, level)
    difference = dense_values.detach().double().cpu() - pruned_values.detach().double().cpu()
    n = len(difference)
    if n < 2:
        raise DataError("an interval needs at least two samples", "measure on more samples")
    bad = int((~difference.isfinite()).sum())
    if bad:
        raise NumericsError(
            f"the metric is not finite on {bad} of {n} samples", "look at the network's outputs for NaN and infinity"
        )
    value, ends = float(difference.mean()), torch.stack([difference.min(), difference.max()])
    if reach is not None:
        ends = torch.stack([ends[0].clamp_max(-reach), ends[1].clamp_min(reach)])
    at_once = max(1, _CHUNK // n)
    means = []  # (draws, 2): with one sample more at either end
    for drawn in range(0, _RESAMPLES, at_once):
        # exponential, as of any sign: the quotient below makes them uniform on the simplex
        weights = torch.rand(min(at_once, _RESAMPLES - drawn), n + 1, generator=generator, dtype=torch.float64)
        weights.neg_().log1p_()
        sums = weights[:, :n] @ difference
        means.append((sums[:, None] + weights[:, n:] * ends) / weights.sum(1, keepdim=True))
    resampled = torch.cat(means)
    low, high = (float(resampled[:, i].quantile(q)) for i, q in enumerate((0.5 - level / 2, 0.5 + level / 2)))
    return Drop(value, min(value, low), max(value, high))


def _check_pairs(dense: Tensor, pruned: Tensor, level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level is in (0, 1), not {level}")
    if dense.dim() != 1 or dense.shape != pruned.shape:
        raise DataError(
            f"the networks were measured on different samples: {tuple(dense.shape)} and {tuple(pruned.shape)} values",
            "give one value for each sample, in the same order",
        )
    if len(dense) == 0:
        raise DataError("no samples to measure the drop on", "use a test set that is not empty")
