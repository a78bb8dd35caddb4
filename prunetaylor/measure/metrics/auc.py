"""AUC: the area under the ROC curve, the probability that a sample of a class scores above one of another.

Mann & Whitney (1947), Annals of Mathematical Statistics 18:50-60; equal scores count half. Of K classes it is the mean
of each against all others by its probability, of binary labels the mean over labels. Classes that no sample has, or
every sample, are left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunetaylor.core.errors import UsageError
from prunetaylor.measure.metric import Predictions, SetMetric
from prunetaylor.measure.metrics._classes import true_classes


class AUC(SetMetric):
    """The scores of all samples are ranked together, class by class."""

    name = "auc"
    title = "AUC"
    summary = "the area under the ROC curve, each class against all others"
    unit = "%"

    def records(self, predictions: Predictions) -> tuple[Tensor, ...]:
        outputs, true = predictions.outputs, true_classes(predictions, self.title)
        if predictions.task == "binary":
            return outputs.flatten(1), true.bool()
        if outputs.dim() > 2:
            raise UsageError("AUC needs one prediction for each sample", "set metric=token_accuracy or metric=f1")
        return outputs.log_softmax(1), torch.nn.functional.one_hot(true[:, 0], outputs.shape[1]).bool()

    def value(self, *records: Tensor) -> float:
        return self.resampler(*records)(torch.arange(len(records[0])))

    def resampler(self, *records: Tensor) -> Callable[[Tensor], float]:
        """Sort the scores once for all draws."""
        scores, labels = (record.cpu() for record in records)
        ascending, order = scores.sort(0)
        positive = labels.gather(0, order).double()
        first, last = _ties(ascending)

        def value(rows: Tensor) -> float:
            counts = torch.bincount(rows.cpu(), minlength=len(scores)).double()[order]
            above, below = counts * positive, counts * (1 - positive)
            seen = torch.cat([below.new_zeros(1, below.shape[1]), below.cumsum(0)])
            lower = (seen.gather(0, first) + seen.gather(0, last)) / 2  # negatives below, of equal ones one half
            pairs = above.sum(0) * below.sum(0)
            return 100 * float(((above * lower).sum(0) / pairs)[pairs > 0].mean())

        return value


def _ties(ascending: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each entry of sorted columns how many are below its value, and how many are at most equal to it."""
    columns = ascending.T.contiguous()
    return torch.searchsorted(columns, columns).T, torch.searchsorted(columns, columns, right=True).T
