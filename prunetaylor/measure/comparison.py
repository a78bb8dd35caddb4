"""The paired comparison of two networks on the same samples; runs and the gate report the same one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from prunetaylor.core.results.outcome import ClassDrop, Drop, Flips
from prunetaylor.measure.disagreements import class_drops, flips
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.measure.metric import Metric, SetMetric
from prunetaylor.measure.paired import bootstrap_interval, drop_interval
from prunetaylor.measure.resampling import resampled_drops


@dataclass(frozen=True)
class Comparison:
    """The samples on which a pruned network's predictions differ from its dense one's.

    Attributes:
        flips: the samples on which only one of the two networks is right.
        classes: the drop in top-1 accuracy of each class, the largest first.
    """

    flips: Flips | None = None
    classes: list[ClassDrop] = field(default_factory=list)


def compare_networks(dense: Evaluation | None, pruned: Evaluation | None) -> Comparison:
    """Compare two evaluations sample by sample; it is empty if either lacks right and wrong predictions."""
    if dense is None or pruned is None or dense.correct is None or pruned.correct is None:
        return Comparison()
    return Comparison(flips(dense.correct, pruned.correct), class_drops(dense.correct, pruned.correct, dense.targets))


def metric_drops(
    metric: Metric,
    dense: Evaluation,
    pruned: Evaluation,
    seed: int,
    levels: Sequence[float],
    *,
    largest: float | None = None,
    step: Callable[[], object] = lambda: None,
) -> list[Drop]:
    """Return by how much the metric got worse, in percentage points if it is a share, else in its own unit.

    Args:
        metric: that of both evaluations.
        seed: of the bootstrap.
        levels: confidence of the two-sided intervals, in (0, 1); one drop for each.
        largest: by how much the value of one sample can change; None if no bound is assumed.
        step: called after each resample of a metric that is no mean.
    """
    if isinstance(metric, SetMetric):
        generator = torch.Generator().manual_seed(seed)
        return resampled_drops(metric, dense.records, pruned.records, generator, levels, step)
    (before,), (after,) = dense.records, pruned.records
    if before.dtype == torch.bool:
        pair = (before, after) if metric.goal == "max" else (after, before)
        return [drop_interval(*pair, level) for level in levels]
    drops = []
    for level in levels:
        generator = torch.Generator().manual_seed(seed)
        drop = bootstrap_interval(metric.sign * before, metric.sign * after, generator, level, largest)
        drops.append(Drop(*(metric.scale * end for end in (drop.value, drop.low, drop.high))))
    return drops


def metric_drop(metric: Metric, dense: Evaluation | None, pruned: Evaluation | None, seed: int) -> Drop | None:
    """Return by how much the metric got worse with its 95 % interval, as :func:`metric_drops` does.

    It is None if the networks were not both measured, or on fewer than two samples, which tell right from wrong only.
    """
    if dense is None or pruned is None or (len(dense.losses) < 2 and dense.records[0].dtype != torch.bool):
        return None
    return metric_drops(metric, dense, pruned, seed, [0.95])[0]


def metric_flips(metric: Metric, dense: Evaluation, pruned: Evaluation) -> Flips | None:
    """Return the samples on which only one network is right by the metric; None if it is not right or wrong."""
    if isinstance(metric, SetMetric) or dense.records[0].dtype != torch.bool:
        return None
    return flips(dense.records[0], pruned.records[0])


def loss_rise(dense: Evaluation, pruned: Evaluation, seed: int) -> Drop:
    """Return the rise of the mean loss with its 95 % interval; ``seed`` is that of the bootstrap."""
    return bootstrap_interval(-dense.losses, -pruned.losses, torch.Generator().manual_seed(seed))


def largest_change(dense: Evaluation, pruned: Evaluation) -> float | None:
    """Return a bound on the change of one sample's value of the metric; None if there is none.

    It is zero for two networks whose values are equal to the last bit: no sample could differ.
    """
    if dense.largest_change is None or pruned.largest_change is None:
        return None
    if all(map(torch.equal, dense.records, pruned.records)):
        return 0.0
    return max(dense.largest_change, pruned.largest_change)
