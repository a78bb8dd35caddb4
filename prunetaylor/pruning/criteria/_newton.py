"""The length of a Newton step that was computed layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunetaylor.taylor.model import TaylorModel


def newton_share(model: TaylorModel, step: Mapping[str, Tensor]) -> float:
    """Return the share in [0, 1] of ``step`` (the weights' shapes, by parameter name) that minimises the error.

    The error is that of the whole network's Taylor model on held-out samples, or else of the model itself.

    Each block's own Newton step corrects the whole error, so that all of them overshoot together, about as many times
    as there are layers. And with more weights than samples a step follows any gradient of the samples that it was
    fitted to, including noise: other samples tell how much of it is more than that.
    """
    moves = {name: v.to(model.state[name]) for name, v in step.items()}
    prediction = (model.holdout_model or model).predict(moves)
    if prediction.first_order >= 0 or prediction.second_order <= 0:  # uphill, or downhill without end
        return 0.0
    return min(1.0, -prediction.first_order / (2 * prediction.second_order))
