"""The halved squared error: m = z, H = I."""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.taylor.losses.interface import ExponentialFamilyLoss, random_signs


class SquaredError(ExponentialFamilyLoss):
    """Half the squared error of K values, summed over them."""

    description = "halved squared error with targets"
    divergence_name = "halved squared error from the dense network's outputs, no labels"

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs

    def target_mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.reshape(outputs.shape).to(outputs.dtype)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.divergence(outputs, self.target_mean(outputs, targets))

    def divergence(self, outputs: Tensor, dense: Tensor) -> Tensor:
        return 0.5 * (outputs - dense).square().sum(-1)

    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        return moved

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.eye(outputs.shape[-1], device=outputs.device, dtype=outputs.dtype).expand(*outputs.shape, -1)

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        return random_signs(outputs, uniform)

    def best_constant(self, outputs: Tensor) -> Tensor:
        return outputs.mean(0)

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs
