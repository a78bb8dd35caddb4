"""The Gauss-Newton matrix as a product, never formed (Schraudolph 2002; Martens 2010).

    G v = 1/n sum_i J_i' H_i J_i v         J: outputs by weights,  H: the error's Hessian in the outputs

One forward-mode and one backward product a batch; memory does not grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.network.names import own_names, parameters_named
from prunetaylor.runtime.processes.exchange import all_sum
from prunetaylor.taylor.curvature.directional import differentiate_outputs
from prunetaylor.taylor.curvature.finite import check_finite
from prunetaylor.taylor.risk import Risk


def gauss_newton_product(risk: Risk, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return G v at the module's current weights, a mean over samples, by the names in ``vector``.

    ``vector`` has any of the module's parameters, each in its own shape; G is restricted to them. A tensor with several
    names moves as one: each of its names gives it, and the last one counts.

    Raises NumericsError: the product is not finite; it names the parameter.
    """
    own = own_names(risk.module)
    weights = parameters_named(risk.module, vector)
    along = {own[name]: v.to(weights[own[name]]) for name, v in vector.items()}
    at = {name: w.detach() for name, w in weights.items()}
    total = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    for _, x, outputs, reference in risk.backward_batches(list(weights.values())):
        moved = differentiate_outputs(risk.module, x, at, along)[1]  # J v
        weighted = risk.objective.hvp(outputs.detach(), reference, moved)  # H J v
        back = torch.autograd.grad((outputs * weighted).sum(), list(weights.values()), allow_unused=True)  # J' H J v
        for name, g in zip(weights, back, strict=True):
            if g is not None:
                total[name] += g
    total = all_sum(total)
    check_finite(total, "a Gauss-Newton product")
    return {name: total[own[name]] / risk.batches.samples for name in vector}
