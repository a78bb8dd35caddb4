"""Optimal Brain Surgeon on layer Gram matrices (Hassibi & Stork 1992, eq. 5; per layer: Dong et al. 2017, eq. 12).

Removing weight j of a row while the row's other kept weights move to make up for it adds to the layer's own output
error (mean square, at one position)

    e_j = w_j^2 / [H^-1]_jj                    H: Gram matrix of the layer's inputs, on the row's kept weights

exactly, for a row at its least-squares optimum. Layers are made comparable by the geometric mean of two units:

    s_j = sqrt( e_j / v  x  1/2 a e_j )        v: the layer's own output variance, a: the row's output sensitivity

e/v is what the layers after it see if nothing saturates (measured best up to 80 % in the design's table), a e / 2 is
the change of the error by K-FAC's factors (best at 95 %); each is believed half.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.curvature.solve import inverse_diagonal
from prunetaylor.curvature.taylor import TaylorModel
from prunetaylor.network.network import Network

NEEDS = "samples"
REPAIR = "least-squares"
STAGED = True


def score(
    model: TaylorModel | None, network: Network, masks: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    assert model is not None
    scores = {}
    for layer in network.layers:
        moments = model.moments[layer.name]
        h, _ = moments.centred()
        keep = layer.matrix(masks[layer.parameter])
        w = layer.matrix(layer.weight.detach()).to(h.dtype)
        added = torch.stack(
            [
                w[g].square() / inverse_diagonal(h[g], keep[g], model.damping, layer.name, model.note)
                for g in range(layer.groups)
            ]
        )
        relative = added / moments.variance.sum().clamp_min(torch.finfo(h.dtype).tiny)
        sensitivity = model.sensitivity.get(layer.name, torch.zeros_like(moments.variance))
        # A layer that the outputs do not depend on costs nothing: its scores are zero and it goes first.
        scores[layer.parameter] = layer.tensor((relative * 0.5 * sensitivity.unsqueeze(2).to(h) * added).sqrt())
    return scores
