"""Optimal Brain Surgeon with K-FAC's factors, in units of the error (Martens & Grosse 2015; for convolutions Grosse &
Martens 2016; for pruning Wang et al. 2019).

The curvature of a layer's weights is the Gram matrix H of its inputs times the second moment a of its output gradients:

    s_j = 1/2 a t_j^2 / [H^-1]_jj              H: on the row's kept weights,  a: summed over positions, the row's own

Of the output factor the diagonal: what makes up for a removal is the rest of its own row, as the repair by least
squares does it row by row, and H can be restricted to what each row keeps. t is the weight; where the first-order term
is kept, where Newton's step would take it, t = w - e (a H)^-1 g (Singh & Alistarh 2020, WoodTaylor, with e = 1; here e
is where the whole network's model of held-out samples has its minimum along the steps of all layers). An intercept,
where there is one, takes part in making up for a removal, so that H is centred there; in Newton's step it stays, and H
is not. There the mean of a row's curvature a diag(H) counts as no less than the damping x _SEEN of the largest in the
network: a layer that is nearly dead has little of either, and would move without bound.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.network.layer import Layer
from prunetaylor.network.network import Network
from prunetaylor.pruning.criteria._newton import newton_share
from prunetaylor.pruning.criteria._units import error_unit
from prunetaylor.pruning.interfaces import Criterion, ScoringContext
from prunetaylor.taylor.curvature.solve import inverse_diagonal, restricted_least_squares
from prunetaylor.taylor.model import TaylorModel

_SEEN = torch.finfo(torch.float32).eps
"""Curvature below this share of the network's largest is rounding: the gradients are in float32."""


class KroneckerOBS(Criterion):
    """Optimal Brain Surgeon in units of the error, with the Kronecker factors of its curvature."""

    summary = (
        "Optimal Brain Surgeon with Kronecker-factored curvature: as obs, but in units of the loss and with the "
        "gradient's term"
    )
    cost = "as obs, plus backward passes over the calibration samples"
    use = "networks that are not converged, where the gradient matters"
    default_repair = "least-squares"
    uses_gradient = True
    uses_damping = True
    max_stage_fraction = 0.35

    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        model = context.model
        targets = {layer.parameter: layer.weight.detach() for layer in context.network.layers}
        if model.keep_first:
            steps = _newton_steps(model, context.network, context.masks)
            share = newton_share(model, steps)
            targets = {name: w + share * steps[name] for name, w in targets.items()}

        def score_layer(layer: Layer) -> Tensor:
            h = model.gram(layer)
            mask = layer.matrix(context.masks[layer.parameter])
            inverse = [
                inverse_diagonal(h[i], mask[i], model.damping, layer.name, model.note) for i in range(layer.groups)
            ]
            target = layer.matrix(targets[layer.parameter]).to(h.dtype)
            return layer.tensor(error_unit(model, layer) * target.square() / torch.stack(inverse))

        return model.layer_scores(score_layer)


def _newton_steps(model: TaylorModel, network: Network, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each layer's own Newton step, by parameter name."""
    least = model.damping * _SEEN * max(float(_curvature(model, layer).max()) for layer in network.layers)
    return {layer.parameter: _newton_step(model, layer, masks[layer.parameter], least) for layer in network.layers}


def _curvature(model: TaylorModel, layer: Layer) -> Tensor:
    """Return the mean of a diag(H) of each of the layer's rows, (G, R, 1)."""
    return 2 * error_unit(model, layer) * _mean_square(model, layer)


def _mean_square(model: TaylorModel, layer: Layer) -> Tensor:
    """Return the mean square of the layer's inputs, (G, 1, 1)."""
    h, _ = model.moments[layer.name].plain()
    return h.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]


def _newton_step(model: TaylorModel, layer: Layer, mask: Tensor, least: float) -> Tensor:
    """Return -(a H)^-1 g on the kept weights, in the weight's shape; a row's curvature counts as at least ``least``."""
    h, _ = model.moments[layer.name].plain()
    kept, curvature = layer.matrix(mask), _curvature(model, layer)
    g = layer.matrix(model.gradient[layer.parameter]).to(h.dtype)
    # Rows that the outputs do not depend on have neither a gradient nor anywhere to go.
    targets = torch.where(curvature > 0, -g * _mean_square(model, layer) / curvature.clamp_min(least), 0)
    start = torch.zeros_like(targets)
    rows = [
        restricted_least_squares(h[i], targets[i], start[i], kept[i], model.damping, layer.name, model.note)
        for i in range(layer.groups)
    ]
    return layer.tensor(torch.stack(rows))
