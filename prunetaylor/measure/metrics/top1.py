"""Top-1 accuracy: the share of samples whose largest output is that of their class."""

from __future__ import annotations

from torch import Tensor

from prunetaylor.core.errors import UsageError
from prunetaylor.measure.metric import Predictions, SampleMetric
from prunetaylor.taylor.objective import loss_of


class Top1(SampleMetric):
    """A sample counts if its prediction is right."""

    name = "top1"
    title = "top-1"
    summary = "the share of samples whose class is predicted"
    unit = "%"

    def values(self, predictions: Predictions) -> Tensor:
        outputs, targets = predictions.outputs, predictions.labels(self.title)
        correct = loss_of(predictions.task).correct(outputs, targets) if outputs.dim() == 2 else None
        if correct is None:
            raise UsageError("the targets are not classes, so there is no top-1 accuracy", "set metric=loss")
        return correct
