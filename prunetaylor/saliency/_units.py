"""How the output errors of different layers are made comparable: the one place where criteria take their units from.

A removal that adds e to the mean square error of one of a layer's outputs counts

    u e,    u = sqrt( 1/v  x  1/2 a )          v: the layer's own output variance, a: the row's output sensitivity

the geometric mean of two units. e/v is what the layers after it see if nothing saturates (measured best up to 80 % in
the design's table), a e / 2 is the change of the error by K-FAC's factors (best at 95 %); each is believed half.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.curvature.taylor import TaylorModel
from prunetaylor.network.layer import Layer


def error_unit(model: TaylorModel, layer: Layer) -> Tensor:
    """a/2, (G, R, 1): the change of the error by K-FAC's factors for a unit of square error in each of the outputs.

    Zero for a layer that the outputs do not depend on.
    """
    moments = model.moments[layer.name]
    sensitivity = model.sensitivity.get(layer.name, torch.zeros_like(moments.variance))
    return 0.5 * sensitivity.unsqueeze(2).to(moments.xx)


def ranking_unit(model: TaylorModel, layer: Layer) -> Tensor:
    """u, (G, R, 1): what square errors in each of a layer's outputs are multiplied with to rank them across layers.

    Zero for a layer that the outputs do not depend on: it costs nothing, and goes first.
    """
    variance = model.moments[layer.name].variance.sum()
    # Two roots rather than one of the quotient, which a layer without any variance would take out of range.
    return error_unit(model, layer).sqrt() / variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
