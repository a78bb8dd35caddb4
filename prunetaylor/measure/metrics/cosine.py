"""The cosine similarity to the dense network's outputs on the same sample: 1 if the direction is the same."""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.measure.metric import Predictions, SampleMetric, widen


class Cosine(SampleMetric):
    """The cosine of each sample's outputs and the dense network's, averaged over the positions that count."""

    name = "cosine"
    title = "cosine"
    summary = "the mean cosine similarity to the dense network's outputs"
    needs = "dense outputs"

    def values(self, predictions: Predictions) -> Tensor:
        shape = (*predictions.counted.shape, -1)
        pruned, dense = (widen(z.reshape(shape)) for z in (predictions.outputs, predictions.dense_outputs))
        product, lengths = (pruned * dense).sum(2), pruned.square().sum(2) * dense.square().sum(2)
        same = (pruned == dense).all(2)  # two vectors of zeros are the same, one of them has no direction
        cosines = torch.where(same, 1, product / lengths.sqrt().clamp_min(torch.finfo(lengths.dtype).tiny))
        counted = widen(predictions.counted)
        return (cosines * counted).sum(1) / counted.sum(1).clamp_min(1)
