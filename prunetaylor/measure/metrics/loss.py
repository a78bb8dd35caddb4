"""The mean loss that the network was trained with, in the loss's own unit."""

from __future__ import annotations

from torch import Tensor

from prunetaylor.measure.metric import Predictions, SampleMetric


class MeanLoss(SampleMetric):
    """The loss of each sample."""

    name = "loss"
    title = "loss"
    summary = "the mean of the loss that the network was trained with"
    goal = "min"

    def values(self, predictions: Predictions) -> Tensor:
        return predictions.loss.values(predictions.outputs, predictions.targets)

    def largest_change(self, predictions: Predictions) -> float | None:
        return predictions.loss.worst(predictions.outputs, predictions.targets)
