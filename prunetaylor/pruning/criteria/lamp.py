"""Layer-adaptive magnitude (Lee, Park, Mo, Ahn & Shin 2021, eq. 4): what share of the layer's weight is at stake.

    s_j = w_j^2 / sum_k w_k^2                  over the k of the same layer that are at least as large as j

k runs over j and everything after it in the order of magnitudes (ties by position). Up to a factor this bounds how far
the removal moves the layer's output, relative to what is left of it; needs no data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.pruning.interfaces import Criterion, ScoringContext
from prunetaylor.taylor.curvature.gram import accumulate_type


class Lamp(Criterion):
    """The squared weight is divided by the sum of the larger ones of its layer."""

    summary = "layer-adaptive magnitude: the squared weight, relative to the larger ones of its layer"
    cost = "a sort; needs no data"
    use = "no data and a high sparsity: it keeps layers from being emptied"
    needs = "nothing"

    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        scores = {}
        for layer in context.network.layers:
            weight = layer.weight.detach()
            squares = weight.flatten().to(accumulate_type(weight.device)).square()
            order = torch.argsort(squares, stable=True)
            rest = squares[order].flip(0).cumsum(0).flip(0)  # what is no smaller, itself included
            share = squares[order] / rest.clamp_min(torch.finfo(rest.dtype).tiny)
            scores[layer.parameter] = torch.empty_like(share).scatter(0, order, share).view(weight.shape)
        return scores
