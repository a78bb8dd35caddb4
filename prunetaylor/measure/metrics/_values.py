"""Errors of predicted values, as the metrics of regressions average them."""

from __future__ import annotations

from torch import Tensor

from prunetaylor.core.errors import UsageError
from prunetaylor.measure.metric import Predictions, widen


def true_values(predictions: Predictions, metric: str) -> Tensor:
    """Return the targets in the shape of the outputs. Raises UsageError: they are of another size, or classes."""
    outputs, targets = predictions.outputs, predictions.labels(metric)
    if targets.numel() != outputs.numel() or predictions.task in ("classification", "binary"):
        raise UsageError(f"the targets are not values like the outputs, so there is no {metric}", "set metric=loss")
    return widen(targets.reshape(outputs.shape))


def errors(predictions: Predictions, metric: str) -> Tensor:
    """Return the difference of outputs and targets, (B, ...)."""
    return widen(predictions.outputs) - true_values(predictions, metric)
