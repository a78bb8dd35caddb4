"""Mean intersection over union: for each class the pixels that are predicted and true, by those that are either.

Everingham et al. (2010), International Journal of Computer Vision 88:303-338. Pixels of all samples are counted
together, and the mean is over the classes that any of them has or is predicted to have.
"""

from __future__ import annotations

from torch import Tensor

from prunetaylor.measure.metric import Predictions, SumMetric
from prunetaylor.measure.metrics._classes import confusion_terms


class MeanIoU(SumMetric):
    """Each sample adds to the intersection and the union of each class."""

    name = "miou"
    title = "mean IoU"
    summary = "the mean over classes of intersection over union"
    unit = "%"

    def terms(self, predictions: Predictions) -> Tensor:
        return confusion_terms(predictions, self.title)

    def of_sums(self, sums: Tensor) -> float:
        union = sums.sum(0)
        return 100 * float((sums[0] / union)[union > 0].mean())
