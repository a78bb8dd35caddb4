"""Optimal Brain Surgeon on layer Gram matrices (Hassibi & Stork 1992, eq. 5; per layer: Dong et al. 2017, eq. 12).

Removing weight j of a row while the row's other kept weights move to make up for it adds to the layer's own output
error (mean square, at one position)

    e_j = w_j^2 / [H^-1]_jj                    H: Gram matrix of the layer's inputs, on the row's kept weights

exactly, for a row at its least-squares optimum; centred where an intercept makes up for the means. Layers are made
comparable by the unit u of ``_units.py``:

    s_j = u e_j
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.network.layer import Layer
from prunetaylor.pruning.criteria._units import ranking_unit
from prunetaylor.pruning.interfaces import Criterion, ScoringContext
from prunetaylor.taylor.curvature.solve import inverse_diagonal


class OptimalBrainSurgeon(Criterion):
    """The score of a weight is the output error of its layer after the rest of its row has compensated."""

    summary = (
        "Optimal Brain Surgeon per layer: the output error that removing a weight leaves when the rest of its row "
        "compensates"
    )
    cost = "one pass over the calibration samples, then one matrix inverse per layer (per row after the first stage)"
    use = "the default with data where exact_obs would take too long: networks with wide layers"
    default_repair = "least-squares"
    uses_damping = True
    max_stage_fraction = 0.35

    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        model = context.model

        def score_layer(layer: Layer) -> Tensor:
            h = model.gram(layer)
            mask = layer.matrix(context.masks[layer.parameter])
            w = layer.matrix(layer.weight.detach()).to(h.dtype)
            added = torch.stack(
                [
                    w[g].square() / inverse_diagonal(h[g], mask[g], model.damping, layer.name, model.note)
                    for g in range(layer.groups)
                ]
            )
            return layer.tensor(ranking_unit(model, layer) * added)

        return model.layer_scores(score_layer)
