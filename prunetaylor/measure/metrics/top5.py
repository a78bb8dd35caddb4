"""Top-5 accuracy: the share of samples whose class is among the five with the largest outputs."""

from __future__ import annotations

from torch import Tensor

from prunetaylor.core.errors import UsageError
from prunetaylor.measure.metric import Predictions, SampleMetric
from prunetaylor.measure.metrics._classes import true_classes

_PLACES = 5


class Top5(SampleMetric):
    """A sample counts if its class has one of the five largest outputs."""

    name = "top5"
    title = "top-5"
    summary = "the share of samples whose class is among the five most likely"
    unit = "%"

    def values(self, predictions: Predictions) -> Tensor:
        outputs = predictions.outputs
        true = true_classes(predictions, self.title)
        if predictions.task == "binary" or outputs.dim() > 2 or outputs.shape[1] <= _PLACES:
            raise UsageError("top-5 needs one class of more than five for each sample", "set metric=top1")
        return (outputs.topk(_PLACES, 1).indices == true).any(1)
