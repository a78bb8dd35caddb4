"""Units that make the output errors of different layers comparable; all criteria take theirs from here.

A removal that adds e to the mean square error of one of a layer's outputs counts

    u e,    u = (1/v)^(1-b) (a/2)^b        v: the layer's own output variance, a: the row's output sensitivity

a e / 2 is the change of the error by K-FAC's factors: right for a small displacement, too steep for a large one, as
what saturates cannot cost more. e/v is the share of the layer's signal that is lost, which is all that counts once the
layers after it see little but noise. Their geometric mean with b = 3/4 is the best, or level with it, at 70 to 95 %
where weights are taken one at a time (ExactOBS; benchmarks/ranking.py). With costs of single removals (OBS) the best
b depends on where a run ends, and nothing is as good.

Where training follows each step, b = 1: no step leads far from where a was fitted. Of 1/4, 3/4 and 1 it is the best
(ExactOBS; benchmarks/gradual_ranking.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.network.layer import Layer
from prunetaylor.taylor.model import TaylorModel

BELIEF = 0.75
"""b where one step follows another."""
RETRAINED = 1.0
"""b where training follows each step."""


def error_unit(model: TaylorModel, layer: Layer) -> Tensor:
    """Return a/2 (G, R, 1), the change of the error by K-FAC's factors for a unit of square error in each output.

    It is zero for a layer that the network's outputs do not depend on.
    """
    moments = model.moments[layer.name]
    sensitivity = model.sensitivity.get(layer.name, torch.zeros_like(moments.variance))
    return 0.5 * sensitivity.unsqueeze(2).to(moments.xx)


def ranking_unit(model: TaylorModel, layer: Layer) -> Tensor:
    """Return u (G, R, 1), the factor of a square error in each of a layer's outputs when layers are compared.

    It is zero for a layer that the network's outputs do not depend on: its weights cost nothing, and are removed first.
    """
    variance = model.moments[layer.name].variance.sum()
    # Two powers rather than one of the quotient, which a layer without any variance would take out of range.
    smallest = torch.finfo(variance.dtype).tiny
    belief = RETRAINED if model.trained_between_stages else BELIEF
    return error_unit(model, layer) ** belief / variance.clamp_min(smallest) ** (1 - belief)
