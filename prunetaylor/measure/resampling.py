"""A paired bootstrap for metrics that are no mean over samples, such as mAP or F1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunetaylor.core.results.outcome import Drop
from prunetaylor.measure.metric import SetMetric

RESAMPLES = 1000


def resampled_drops(
    metric: SetMetric,
    dense: Sequence[Tensor],
    pruned: Sequence[Tensor],
    generator: torch.Generator,
    levels: Sequence[float],
    step: Callable[[], object] = lambda: None,
) -> list[Drop]:
    """Return by how much the metric got worse, with percentile intervals.

    Each of 1,000 resamples draws samples with replacement, the same for both networks (Efron & Tibshirani 1993, chapter
    13). Where all resamples show the same drop although the networks' outputs differ, the samples give no bound: the
    limits are infinite.

    Args:
        dense: the metric's records (N, ...) of the dense network; ``pruned`` alike, in the same order.
        levels: of the two-sided intervals, one drop for each.
        step: called after each resample.
    """
    dense, pruned = ([record.detach().cpu() for record in records] for records in (dense, pruned))

    before, after = metric.resampler(*dense), metric.resampler(*pruned)
    n = len(dense[0])
    values = []
    for _ in range(RESAMPLES):
        rows = torch.randint(n, (n,), generator=generator)
        values.append(metric.sign * (before(rows) - after(rows)))
        step()
    value = metric.sign * (metric.value(*dense) - metric.value(*pruned))
    spread = torch.tensor(values, dtype=torch.float64)
    spread = spread[~spread.isnan()]  # of samples of one class, say, there is no AUC
    if not len(spread) or (spread.min() == spread.max() and not all(map(torch.equal, dense, pruned))):
        return [Drop(value, -math.inf, math.inf) for _ in levels]
    drops = []
    for level in levels:
        tails = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64)
        low, high = spread.quantile(tails).tolist()
        drops.append(Drop(value, min(low, value), max(high, value)))
    return drops
