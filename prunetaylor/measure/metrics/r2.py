"""The coefficient of determination R2, averaged over the outputs: 1 - sum (y - z)^2 / sum (y - mean y)^2.

1 is perfect, 0 is as good as always predicting the mean; it may be negative. Where all targets of an output are equal,
it is 1 if they are predicted exactly, and else 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.measure.metric import Predictions, SetMetric, widen
from prunetaylor.measure.metrics._values import errors, true_values


class R2(SetMetric):
    """Each sample has the mean of its targets, the squares of their distances from it, and of the errors, by output."""

    name = "r2"
    title = "R2"
    summary = "the share of the targets' variance that is predicted, 1 - residual / total sum of squares"

    def records(self, predictions: Predictions) -> tuple[Tensor, ...]:
        outputs = predictions.outputs.shape[-1] if predictions.outputs.dim() > 1 else 1
        targets = true_values(predictions, self.title).reshape(len(predictions.outputs), -1, outputs)
        residuals = errors(predictions, self.title).reshape(targets.shape)
        mean = targets.mean(1)
        spread = (targets - mean.unsqueeze(1)).square().sum(1)
        return mean, spread, residuals.square().sum(1), torch.full_like(mean, targets.shape[1])

    def value(self, *records: Tensor) -> float:
        mean, spread, residual, count = (widen(record) for record in records)
        whole = (mean * count).sum(0) / count.sum(0)
        total = (spread + count * (mean - whole).square()).sum(0)
        unexplained = residual.sum(0) / torch.where(total > 0, total, 1)
        each = torch.where(total > 0, 1 - unexplained, (residual.sum(0) == 0).to(unexplained.dtype))
        return float(each.mean())
