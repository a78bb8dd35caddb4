"""Random: any weight may go. What a criterion has to be better than.

s_j ~ U(0, 1)
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.pruning.interfaces import Criterion, ScoringContext


class Random(Criterion):
    """The score of a weight is a random number."""

    summary = "weights are removed at random"
    cost = "none; needs no data"
    use = "a lower bound for other methods"
    needs = "nothing"

    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        return {
            layer.parameter: torch.rand(layer.weight.shape, generator=context.generator).to(layer.weight.device)
            for layer in context.network.layers
        }
