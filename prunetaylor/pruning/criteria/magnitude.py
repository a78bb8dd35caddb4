"""Magnitude: the smallest weights go (Han et al. 2015). The baseline that needs no data.

s_j = |w_j|
"""

from __future__ import annotations

from torch import Tensor

from prunetaylor.pruning.interfaces import Criterion, ScoringContext


class Magnitude(Criterion):
    """The score of a weight is its absolute value."""

    summary = "the smallest absolute weights are removed"
    cost = "a sort; needs no data"
    use = "the default without data; the baseline to beat"
    needs = "nothing"

    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        return {layer.parameter: layer.weight.detach().abs() for layer in context.network.layers}
