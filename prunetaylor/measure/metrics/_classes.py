"""Predicted and true classes, as the metrics of classifications compare them."""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.core.errors import UsageError
from prunetaylor.measure.metric import Predictions
from prunetaylor.taylor.objective import Task


def predicted_classes(outputs: Tensor, task: Task, metric: str) -> Tensor:
    """Return the class ids of outputs: (B, P) of the largest output, or (B, K) zeros and ones of K binary labels.

    Without positions P is 1. Raises UsageError: the outputs are values.
    """
    if task == "binary":
        return (outputs > 0).flatten(1).long()
    if task in ("regression", "features") or outputs.shape[-1] < 2 or outputs.dim() > 3:
        raise UsageError(
            f"the outputs are values, not classes, so there is no {metric}",
            "set metric=r2, metric=cosine or metric=loss",
        )
    return outputs.argmax(-1).view(len(outputs), -1)


def true_classes(predictions: Predictions, metric: str) -> Tensor:
    """Return the true class ids in the form of :func:`predicted_classes`, with -100 for those that do not count.

    Raises UsageError: the targets are not classes.
    """
    outputs, targets = predictions.outputs, predictions.labels(metric)
    if predictions.task == "binary":
        return (targets.reshape(len(outputs), -1) > 0.5).long()
    predicted_classes(outputs, predictions.task, metric)
    if targets.shape == outputs.shape:  # shares of the classes
        return targets.argmax(-1).view(len(outputs), -1)
    if targets.is_floating_point() or targets.numel() != outputs.shape[:-1].numel():
        raise UsageError(f"the targets are not classes, so there is no {metric}", "set metric=loss")
    return targets.reshape(len(outputs), -1).long()


def confusion_terms(predictions: Predictions, metric: str) -> Tensor:
    """Return how often each sample has each class as predicted and true, as predicted only, and as true only.

    Returns (B, 3, K) whole numbers. Of K binary labels only the positive class of each counts.
    """
    predicted = predicted_classes(predictions.outputs, predictions.task, metric)
    true = true_classes(predictions, metric)
    if predictions.task == "binary":
        predicted_in, true_in = predicted.bool(), true.bool()
        rows = [predicted_in & true_in, predicted_in & ~true_in, ~predicted_in & true_in]
        return torch.stack(rows, 1).to(torch.uint8)
    counted, classes = true >= 0, predictions.outputs.shape[-1]
    shape = (len(true), classes)

    def count(ids: Tensor, where: Tensor) -> Tensor:
        zeros = torch.zeros(shape, dtype=torch.int32, device=ids.device)
        return zeros.scatter_add_(1, ids.clamp_min(0), where.int())

    right = count(true, counted & (predicted == true))
    counts = torch.stack([right, count(predicted, counted) - right, count(true, counted) - right], 1)
    return counts.to(torch.uint8) if predicted.shape[1] <= 255 else counts
