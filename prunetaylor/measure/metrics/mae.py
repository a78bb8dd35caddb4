"""The mean absolute error of all predicted values, in the targets' unit."""

from __future__ import annotations

from torch import Tensor

from prunetaylor.measure.metric import Predictions, SampleMetric
from prunetaylor.measure.metrics._values import errors


class MeanAbsoluteError(SampleMetric):
    """The absolute error of each sample, averaged over its values."""

    name = "mae"
    title = "MAE"
    summary = "the mean absolute error of the predicted values"
    goal = "min"

    def values(self, predictions: Predictions) -> Tensor:
        return errors(predictions, self.title).abs().flatten(1).mean(1)
