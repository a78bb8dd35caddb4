"""The mean loss that the network was trained with, in the loss's own unit.

The loss of a sample with several predictions is the mean over those that count. Samples without labels have the
distance to the dense network's outputs in its place.
"""

from __future__ import annotations

from torch import Tensor

from prunetaylor.measure.metric import Predictions, SampleMetric
from prunetaylor.taylor.objective import Objective, Reference, loss_of


class MeanLoss(SampleMetric):
    """The loss of each sample."""

    name = "loss"
    title = "loss"
    summary = "the mean of the loss that the network was trained with"
    goal = "min"

    def values(self, predictions: Predictions) -> Tensor:
        if predictions.targets is None:
            distance = Objective(predictions.task, "divergence")
            return distance.values(predictions.outputs, Reference(predictions.dense_outputs))
        return Objective(predictions.task, "task").values(predictions.outputs, Reference(predictions.targets))

    def largest_change(self, predictions: Predictions) -> float | None:
        if predictions.targets is None:
            return None
        return loss_of(predictions.task).worst(predictions.outputs, predictions.targets)
