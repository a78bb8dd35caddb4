"""How far from convergence a checkpoint is: the premise of the method, measured and never assumed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunetaylor.network.network import Network
from prunetaylor.taylor.curvature.gradients import gradient_norms
from prunetaylor.taylor.memory import release
from prunetaylor.taylor.model import TaylorModel

SHARE = 1 / 3
"""From this share on the first-order term is kept: it is then at least half as large as the second-order one."""
SIGNAL = 0.5
"""A gradient is seen only where its square exceeds what sampling alone would give it by this share of that.

In many dimensions the square of a mean of noise hardly scatters, so that half as much again is far outside of it.
"""
PROBE = 0.25
"""Of each layer's weights, the smallest, are removed to see which term a prediction rests on."""


@dataclass(frozen=True)
class Convergence:
    """Of the task error (with labels) at the dense weights.

    ``share`` of the first-order term in the change that the model predicts for a probe: removing the smallest
    ``probe`` of every layer's weights, with no repair.
    """

    share: float
    gradient_norm: float
    noise_norm: float
    probe: float

    @property
    def gradient_seen(self) -> bool:
        """Whether the mean gradient is more than sampling alone makes of a zero one."""
        return self.gradient_norm**2 > (1 + SIGNAL) * self.noise_norm**2

    @property
    def first_order_matters(self) -> bool:
        return self.gradient_seen and self.share > SHARE

    def describe(self) -> str:
        return (
            f"the task gradient's norm is {self.gradient_norm:.3g} ({self.noise_norm:.3g} from sampling alone); the "
            f"first-order term is {self.share:.0%} of the change predicted for a probe"
        )


def check_convergence(model: TaylorModel, probe: float = PROBE) -> Convergence:
    """Measure at the model's own weights; its error must be ``task`` for the result to mean anything."""
    norm, noise = gradient_norms(model.risk, model.network.layers)
    prediction = model.predict(_smallest(model.network, probe))
    release()
    return Convergence(prediction.share, norm, noise, probe)


def _smallest(network: Network, share: float) -> dict[str, Tensor]:
    """The displacement that takes the smallest ``share`` of each layer's weights to zero."""
    moves = {}
    for layer in network.layers:
        w = layer.weight.detach()
        gone = torch.argsort(w.abs().flatten(), stable=True)[: round(share * w.numel())]
        move = torch.zeros_like(w).flatten()
        move[gone] = -w.flatten()[gone]
        moves[layer.parameter] = move.view_as(w)
    return moves
