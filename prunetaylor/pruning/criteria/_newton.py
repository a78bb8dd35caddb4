"""How far to go along a Newton step that was found layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunetaylor.taylor.model import TaylorModel


def newton_share(model: TaylorModel, step: Mapping[str, Tensor]) -> float:
    """The share, in [0, 1], of ``step`` (the weights' shapes, by parameter name) at which the judge's Taylor model of
    the whole network, or the model itself where there is no judge, has its minimum along it.

    Each block's own Newton step makes up for the whole of the error; all of them together overshoot, about as many
    times as there are layers. And where there are more weights than samples a step meets any gradient of the samples
    that it was fitted to, noise too: others say how much of it is more than that.
    """
    moves = {name: v.to(model.state[name]) for name, v in step.items()}
    found = (model.holdout_model or model).predict(moves)
    if found.first_order >= 0 or found.second_order <= 0:  # uphill, or as far as anybody can tell without an end
        return 0.0
    return min(1.0, -found.first_order / (2 * found.second_order))
