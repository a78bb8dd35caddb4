"""Optimal Brain Damage (LeCun, Denker & Solla 1990, eq. 5): the diagonal of the second-order term.

    s_j = 1/2 h_j w_j^2  (- g_j w_j where the first-order term is kept)         h: diagonal of the Gauss-Newton matrix

The classic, with the Gauss-Newton diagonal in place of the Hessian's, as in the paper's own Levenberg-Marquardt form.
On networks with batch norm the diagonal alone is worse than magnitude; see benchmarks/.
"""

from __future__ import annotations

from torch import Tensor

from prunetaylor.pruning.interfaces import Criterion, ScoringContext


class OptimalBrainDamage(Criterion):
    """The score of a weight is its second-order term alone, without compensation."""

    summary = "Optimal Brain Damage: half the diagonal curvature times the squared weight, nothing compensates"
    cost = "up to one backward pass per class over the calibration samples"
    use = "a classic baseline; worse than magnitude on networks with batch norm"
    uses_gradient = True

    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        model = context.model
        scores = {}
        for layer in context.network.layers:
            name, w = layer.parameter, layer.weight.detach()
            scores[name] = 0.5 * model.diagonal[name] * w.square()
            if model.keep_first:
                scores[name] = scores[name] - model.gradient[name] * w
        return scores
