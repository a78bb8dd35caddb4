"""Disagreements of two networks on the same samples: flips, an exact test of them, and the drop of each class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunetaylor.core.results.outcome import ClassDrop, Flips
from prunetaylor.measure.paired import drop_interval


def flips(dense_correct: Tensor, pruned_correct: Tensor) -> Flips:
    """Return the disagreements of two networks; both arguments are (N,) boolean, in the same order."""
    pruned_correct = pruned_correct.to(dense_correct.device)
    lost = int((dense_correct & ~pruned_correct).sum())
    won = int((~dense_correct & pruned_correct).sum())
    return Flips(len(dense_correct), lost, won, mcnemar(lost, won))


def mcnemar(b: int, c: int) -> float:
    """Return the two-sided p of McNemar's exact test of ``b`` against ``c`` discordant pairs.

    McNemar (1947), Psychometrika 12:153-157, by the binomial distribution itself: where both networks are equally good
    each disagreement falls to either side with probability 1/2, so that with n = b + c, k = min(b, c)

        p = min(1, 2 sum_{i <= k} C(n, i) / 2^n)

    The sum runs downward from i = k, each term a ratio of its neighbour's, until nothing is left to add.
    """
    n, k = b + c, min(b, c)
    # log C(n, k) - n log 2; the terms below it relative to it
    first = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
    total = term = 1.0
    for i in range(k, 0, -1):
        term *= i / (n - i + 1)
        total += term
        if term < 1e-17 * total:
            break
    return min(1.0, 2 * total * math.exp(first))


def class_drops(dense_correct: Tensor, pruned_correct: Tensor, targets: Tensor) -> list[ClassDrop]:
    """Return the drop of every class that has samples, the largest first; ``targets`` (N,) are class ids."""
    dense_correct, pruned_correct, targets = (t.cpu() for t in (dense_correct, pruned_correct, targets))
    drops = []
    for label in torch.unique(targets).tolist():
        in_class = targets == label
        dense, pruned = dense_correct[in_class], pruned_correct[in_class]
        lost, won = int((dense & ~pruned).sum()), int((~dense & pruned).sum())
        drops.append(ClassDrop(int(label), len(dense), lost, won, drop_interval(dense, pruned)))
    return sorted(drops, key=lambda one: (-one.drop.value, one.label))
