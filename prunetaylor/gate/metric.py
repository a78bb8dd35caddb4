"""A metric of the user's own is FILE.py:FUNCTION of (outputs, targets); a paired bootstrap gives its drop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prunetaylor.core.errors import DataError, NumericsError, UsageError
from prunetaylor.core.results.outcome import Drop
from prunetaylor.runtime.user_code import load_object

Metric = Callable[[Tensor, Tensor], float]

RESAMPLES = 1000


def load_metric(spec: str) -> Metric:
    """Load the function that ``spec`` names, with a check of its results. UsageError where it cannot be called."""
    function = load_object(spec)
    if not callable(function):
        raise UsageError(
            f"gate.metric: {spec} is a {type(function).__name__}, not a function",
            "name a function of (outputs, targets) that returns a number",
        )

    def metric(outputs: Tensor, targets: Tensor) -> float:
        try:
            value = float(function(outputs, targets))
        except Exception as error:
            raise DataError(
                f"gate.metric: {spec} failed: {type(error).__name__}: {error}",
                "it is called with outputs (N, K) and targets (N, ...) and returns a number",
            ) from error
        if value != value or abs(value) == float("inf"):
            raise NumericsError(f"gate.metric: {spec} gave {value}", "a metric must be finite on any set of samples")
        return value

    return metric


def resampled_drops(
    metric: Metric,
    dense: Tensor,
    pruned: Tensor,
    targets: Tensor,
    generator: torch.Generator,
    levels: Sequence[float],
    step: Callable[[], Any],
) -> list[Drop]:
    """Return metric(dense) - metric(pruned) with percentile intervals, for metrics that are no mean (mAP, F1).

    Each of 1,000 resamples draws samples with replacement, the same for both networks (Efron & Tibshirani 1993, chapter
    13). Where all resamples show the same drop although the networks' outputs differ, the samples give no bound: the
    limits are infinite.

    Args:
        dense: (N, K) outputs; ``pruned`` alike, ``targets`` (N, ...), in the same order and on the CPU.
        levels: of the two-sided intervals, one drop for each.
        step: called after each resample.
    """
    n = len(targets)
    values = []
    for _ in range(RESAMPLES):
        drawn = torch.randint(n, (n,), generator=generator)
        values.append(metric(dense[drawn], targets[drawn]) - metric(pruned[drawn], targets[drawn]))
        step()
    value, spread = metric(dense, targets) - metric(pruned, targets), torch.tensor(values, dtype=torch.float64)
    if spread.min() == spread.max() and not torch.equal(dense, pruned):
        return [Drop(value, -math.inf, math.inf) for _ in levels]
    drops = []
    for level in levels:
        tails = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
        low, high = spread.quantile(tails).tolist()
        drops.append(Drop(value, min(low, value), max(high, value)))
    return drops
