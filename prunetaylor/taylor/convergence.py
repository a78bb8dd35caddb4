"""The distance of a checkpoint from convergence: the premise of the method is measured and never assumed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunetaylor.network.network import Network
from prunetaylor.taylor.curvature.gradients import gradient_norms
from prunetaylor.taylor.memory import release
from prunetaylor.taylor.model import TaylorModel

FIRST_ORDER_SHARE = 1 / 3
"""Above this share the first-order term is kept: it is then at least half as large as the second-order term."""
NOISE_MARGIN = 0.5
"""A gradient is significant if its square exceeds the square that sampling noise alone gives by this fraction.

In many dimensions the square of a mean of noise hardly scatters, so that half as much again is far outside of it.
"""
PROBE_FRACTION = 0.25
"""The smallest weights of each layer that the probe removes, to compare the two terms of the prediction."""


@dataclass(frozen=True)
class Convergence:
    """The convergence of the task error (with labels) at the dense weights.

    The probe removes the fraction ``probe`` of every layer's weights, the smallest ones, without repair;
    ``first_order_share`` is the share of the first-order term in the change that the model predicts for it. The norms
    are those of the mean gradient, and of the gradient that sampling noise alone would give.
    """

    first_order_share: float
    gradient_norm: float
    noise_norm: float
    probe: float

    @property
    def gradient_is_significant(self) -> bool:
        """Return True if the mean gradient is larger than sampling noise."""
        return self.gradient_norm**2 > (1 + NOISE_MARGIN) * self.noise_norm**2

    @property
    def first_order_matters(self) -> bool:
        """Return True if the gradient is significant and its term a large share of the probe's predicted change."""
        return self.gradient_is_significant and self.first_order_share > FIRST_ORDER_SHARE

    def describe(self) -> str:
        """Return the measured numbers as one sentence, for reports."""
        return (
            f"the task gradient's norm is {self.gradient_norm:.3g} ({self.noise_norm:.3g} from sampling alone); the "
            f"first-order term is {self.first_order_share:.0%} of the change predicted for a probe"
        )


def check_convergence(model: TaylorModel, probe: float = PROBE_FRACTION) -> Convergence:
    """Measure the convergence at the model's weights. The model's error must be the task error."""
    norm, noise = gradient_norms(model.risk, model.network.layers)
    prediction = model.predict(_smallest(model.network, probe))
    release()
    return Convergence(prediction.first_order_share, norm, noise, probe)


def _smallest(network: Network, share: float) -> dict[str, Tensor]:
    """Return the displacement that takes the smallest ``share`` of each layer's weights to zero."""
    moves = {}
    for layer in network.layers:
        w = layer.weight.detach()
        smallest = torch.argsort(w.abs().flatten(), stable=True)[: round(share * w.numel())]
        move = torch.zeros_like(w).flatten()
        move[smallest] = -w.flatten()[smallest]
        moves[layer.parameter] = move.view_as(w)
    return moves
