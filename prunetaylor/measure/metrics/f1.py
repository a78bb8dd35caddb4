"""F1: for each class the harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN), averaged over classes.

van Rijsbergen (1979), Information Retrieval, chapter 7. Of binary labels it is that of the positive class, averaged
over the labels. Classes that no sample has or is predicted to have are left out.
"""

from __future__ import annotations

from torch import Tensor

from prunetaylor.measure.metric import Predictions, SumMetric
from prunetaylor.measure.metrics._classes import confusion_terms


class F1(SumMetric):
    """Each sample adds to the true positives, false positives and false negatives of each class."""

    name = "f1"
    title = "F1"
    summary = "the mean over classes of the harmonic mean of precision and recall"
    unit = "%"

    def terms(self, predictions: Predictions) -> Tensor:
        return confusion_terms(predictions, self.title)

    def of_sums(self, sums: Tensor) -> float:
        right, wrong = sums[0], sums[1] + sums[2]
        either = right + wrong > 0
        return 100 * float((2 * right / (2 * right + wrong))[either].mean())
