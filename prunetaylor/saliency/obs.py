"""Optimal Brain Surgeon on layer Gram matrices (Hassibi & Stork 1992, eq. 5; per layer: Dong et al. 2017, eq. 12).

Removing weight j of a row while the row's other kept weights move to make up for it adds to the layer's own output
error (mean square, at one position)

    e_j = w_j^2 / [H^-1]_jj                    H: Gram matrix of the layer's inputs, on the row's kept weights

exactly, for a row at its least-squares optimum. Layers are made comparable by the unit u of ``_units.py``:

    s_j = u e_j
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.curvature.solve import inverse_diagonal
from prunetaylor.curvature.taylor import TaylorModel
from prunetaylor.network.network import Network
from prunetaylor.saliency._units import ranking_unit

NEEDS = "samples"
REPAIR = "least-squares"
STAGED = True


def score(
    model: TaylorModel | None, network: Network, masks: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    assert model is not None
    scores = {}
    for layer in network.layers:
        h, _ = model.moments[layer.name].centred()
        keep = layer.matrix(masks[layer.parameter])
        w = layer.matrix(layer.weight.detach()).to(h.dtype)
        added = torch.stack(
            [
                w[g].square() / inverse_diagonal(h[g], keep[g], model.damping, layer.name, model.note)
                for g in range(layer.groups)
            ]
        )
        scores[layer.parameter] = layer.tensor(ranking_unit(model, layer) * added)
    return scores
