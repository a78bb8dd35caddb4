"""Token accuracy: the share of all tokens (or pixels) that count whose class is predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.measure.metric import Predictions, SumMetric
from prunetaylor.measure.metrics._classes import predicted_classes, true_classes


class TokenAccuracy(SumMetric):
    """Each sample adds its tokens that are right, and those that count."""

    name = "token_accuracy"
    title = "token accuracy"
    summary = "the share of all tokens whose class is predicted"
    unit = "%"

    def terms(self, predictions: Predictions) -> Tensor:
        true = true_classes(predictions, self.title)
        predicted = predicted_classes(predictions.outputs, predictions.task, self.title)
        counted = true >= 0
        return torch.stack([(counted & (predicted == true)).sum(1), counted.sum(1)], 1)

    def of_sums(self, sums: Tensor) -> float:
        right, counted = sums.tolist()
        return 100 * right / counted if counted else float("nan")
