"""First-order Taylor: the weights whose removal moves the error least, either way (Molchanov et al. 2019, eq. 8).

    s_j = |g_j w_j|                            g: gradient of the mean error

At convergence g is about zero and this says little: it is for networks that are not converged, and it needs labels,
since the divergence from the dense network has no gradient at the dense weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.network.network import Network
from prunetaylor.taylor.curvature.gradients import gradient_bytes
from prunetaylor.taylor.memory import FLOAT, Phase, Sizes
from prunetaylor.taylor.model import TaylorModel

SUMMARY = "first-order Taylor expansion: the absolute value of gradient times weight"
COST = "one forward and backward pass over labelled samples"
USE = "networks far from convergence, with labels; useless at convergence"
NEEDS = "labels"
REPAIR = "none"
FIRST_ORDER = True
DAMPED = False
MAX_STAGE_FRACTION = None


def memory(sizes: Sizes) -> list[Phase]:
    """The gradient, then the scores beside it."""
    held, batch = gradient_bytes(sizes)
    return [
        Phase("gradient", {"curvature": held, "activations": batch}),
        Phase("scores", {"curvature": held, "scores": FLOAT * sizes.weights}),
    ]


def score(
    model: TaylorModel | None, network: Network, masks: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    assert model is not None
    model.name_empty("gradient", model.gradient)
    return {
        layer.parameter: (model.gradient[layer.parameter] * layer.weight.detach()).abs() for layer in network.layers
    }
