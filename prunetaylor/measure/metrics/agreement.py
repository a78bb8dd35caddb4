"""Agreement: the share of samples for which the network predicts the same class as the dense network."""

from __future__ import annotations

from torch import Tensor

from prunetaylor.measure.metric import Predictions, SampleMetric, widen
from prunetaylor.measure.metrics._classes import predicted_classes


class Agreement(SampleMetric):
    """A sample counts if its prediction is the dense network's; of several predictions, the share that is."""

    name = "agreement"
    title = "agreement"
    summary = "the share of predictions that are the dense network's"
    unit = "%"
    needs = "dense outputs"

    def values(self, predictions: Predictions) -> Tensor:
        pruned, dense = (
            predicted_classes(outputs, predictions.task, self.title)
            for outputs in (predictions.outputs, predictions.dense_outputs)
        )
        same = pruned == dense
        if same.shape[1] == 1:
            return same[:, 0]
        counted = predictions.counted.expand_as(same)
        return widen(same & counted).sum(1) / widen(counted).sum(1).clamp_min(1)
