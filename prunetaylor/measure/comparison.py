"""The paired comparison of two networks on the same samples; runs and the gate report the same one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from prunetaylor.core.results.outcome import ClassDrop, Drop, Flips
from prunetaylor.measure.disagreements import class_drops, flips
from prunetaylor.measure.evaluate import Evaluation
from prunetaylor.measure.paired import bootstrap_interval, drop_interval


@dataclass(frozen=True)
class Comparison:
    """The samples on which a pruned network's predictions differ from its dense one's.

    Attributes:
        drop: the drop in top-1 accuracy with its 95 % interval; None if predictions are not simply right or wrong.
        flips: the samples on which only one of the two networks is right.
        classes: the drop of each class, the largest first.
    """

    drop: Drop | None = None
    flips: Flips | None = None
    classes: list[ClassDrop] = field(default_factory=list)


def compare_networks(dense: Evaluation | None, pruned: Evaluation | None) -> Comparison:
    """Compare two evaluations sample by sample; it is empty if either lacks right and wrong predictions."""
    if dense is None or pruned is None or dense.correct is None or pruned.correct is None:
        return Comparison()
    return Comparison(
        drop_interval(dense.correct, pruned.correct),
        flips(dense.correct, pruned.correct),
        class_drops(dense.correct, pruned.correct, dense.targets),
    )


def loss_rise(
    dense: Evaluation, pruned: Evaluation, seed: int, *, level: float = 0.95, largest: float | None = None
) -> Drop:
    """Return the rise of the mean loss with its interval.

    Args:
        seed: of the bootstrap.
        level: confidence of the two-sided interval, in (0, 1).
        largest: by how much the loss of one sample can change; None if no bound is assumed.
    """
    generator = torch.Generator().manual_seed(seed)
    return bootstrap_interval(-dense.losses, -pruned.losses, generator, level, largest)


def largest_loss_change(dense: Evaluation, pruned: Evaluation) -> float:
    """Return a bound on the change of one sample's loss: the largest loss that either network's outputs could cost.

    It is zero for two networks whose losses are equal to the last bit: no sample could differ.
    """
    if torch.equal(dense.losses, pruned.losses):
        return 0.0
    assert dense.worst is not None  # both were measured just now
    assert pruned.worst is not None
    return max(dense.worst, pruned.worst)
