"""Perplexity: the exponential of the mean cross-entropy of all tokens that count, in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunetaylor.core.errors import UsageError
from prunetaylor.measure.metric import Predictions, SumMetric, widen
from prunetaylor.measure.metrics._classes import true_classes


class Perplexity(SumMetric):
    """Each sample adds the cross-entropies of its tokens, and their number."""

    name = "perplexity"
    title = "perplexity"
    summary = "the exponential of the mean cross-entropy of all tokens"
    goal = "min"

    def terms(self, predictions: Predictions) -> Tensor:
        if predictions.task == "binary":
            raise UsageError("perplexity needs classes, and the targets are binary labels", "set metric=loss")
        true = true_classes(predictions, self.title)
        outputs = predictions.outputs.reshape(*true.shape, -1)
        counted = true >= 0
        logits = outputs.gather(2, true.clamp_min(0).unsqueeze(2)).squeeze(2)
        losses = torch.where(counted, outputs.logsumexp(2) - logits, 0)
        return torch.stack([widen(losses).sum(1), widen(counted).sum(1)], 1)

    def of_sums(self, sums: Tensor) -> float:
        loss, counted = sums.tolist()
        if not counted or math.isnan(loss):
            return math.nan
        return math.exp(loss / counted) if loss / counted < 700 else math.inf
