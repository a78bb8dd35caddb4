"""The mean squared error of all predicted values, in the square of the targets' unit."""

from __future__ import annotations

from torch import Tensor

from prunetaylor.measure.metric import Predictions, SampleMetric
from prunetaylor.measure.metrics._values import errors


class MeanSquaredError(SampleMetric):
    """The squared error of each sample, averaged over its values."""

    name = "mse"
    title = "MSE"
    summary = "the mean squared error of the predicted values"
    goal = "min"

    def values(self, predictions: Predictions) -> Tensor:
        return errors(predictions, self.title).square().flatten(1).mean(1)
