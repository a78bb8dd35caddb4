"""First-order Taylor: the weights whose removal moves the error least, either way (Molchanov et al. 2019, eq. 8).

    s_j = |g_j w_j|                            g: gradient of the mean error

At convergence g is about zero and this says little: it is for networks that are not converged, and it needs labels,
since the divergence from the dense network has no gradient at the dense weights.
"""

from __future__ import annotations

from torch import Tensor

from prunetaylor.pruning.interfaces import Criterion, ScoringContext


class FirstOrderTaylor(Criterion):
    """The score of a weight is the absolute first-order term of its removal."""

    summary = "first-order Taylor expansion: the absolute value of gradient times weight"
    cost = "one forward and backward pass over labelled samples"
    use = "networks far from convergence, with labels; useless at convergence"
    needs = "labels"
    uses_gradient = True

    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        model = context.model
        model.name_empty("gradient", model.gradient)
        return {
            layer.parameter: (model.gradient[layer.parameter] * layer.weight.detach()).abs()
            for layer in context.network.layers
        }
