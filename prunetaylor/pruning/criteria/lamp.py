"""Layer-adaptive magnitude (Lee, Park, Mo, Ahn & Shin 2021, eq. 4): what share of the layer's weight is at stake.

    s_j = w_j^2 / sum_k w_k^2                  over the k of the same layer that are at least as large as j

k runs over j and everything after it in the order of magnitudes (ties by position). Up to a factor this bounds how far
the removal moves the layer's output, relative to what is left of it; needs no data.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.network.network import Network
from prunetaylor.taylor.curvature.gram import accumulate_type
from prunetaylor.taylor.memory import Phase, Sizes
from prunetaylor.taylor.model import TaylorModel

SUMMARY = "layer-adaptive magnitude: the squared weight, relative to the larger ones of its layer"
COST = "a sort; needs no data"
USE = "no data and a high sparsity: it keeps layers from being emptied"
NEEDS = "nothing"
REPAIR = "none"
FIRST_ORDER = False
DAMPED = False
MAX_STAGE_FRACTION = None


def memory(sizes: Sizes) -> list[Phase]:
    """The scores in the widest type, and the largest layer's squares, their order and sums."""
    return [Phase("scores", {"scores": sizes.wide * (sizes.weights + 6 * sizes.largest)})]


def score(
    model: TaylorModel | None, network: Network, masks: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    scores = {}
    for layer in network.layers:
        weight = layer.weight.detach()
        squares = weight.flatten().to(accumulate_type(weight.device)).square()
        order = torch.argsort(squares, stable=True)
        left = squares[order].flip(0).cumsum(0).flip(0)  # what is no smaller, itself included
        share = squares[order] / left.clamp_min(torch.finfo(left.dtype).tiny)
        scores[layer.parameter] = torch.empty_like(share).scatter(0, order, share).view(weight.shape)
    return scores
