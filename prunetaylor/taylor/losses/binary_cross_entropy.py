"""The binary cross-entropy: m = sigmoid(z), H = diag(m (1 - m))."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from prunetaylor.taylor.losses.interface import ExponentialFamilyLoss, random_signs


class BinaryCrossEntropy(ExponentialFamilyLoss):
    """The binary cross-entropy of K labels, summed over them."""

    description = "binary cross-entropy with labels"
    divergence_name = "binary KL divergence from the dense network's outputs, no labels"

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def target_mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.reshape(outputs.shape).to(outputs.dtype)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        mean = self.target_mean(outputs, targets)
        return functional.binary_cross_entropy_with_logits(outputs, mean, reduction="none").sum(-1)

    def divergence(self, outputs: Tensor, dense: Tensor) -> Tensor:
        p, q = dense.sigmoid(), (-dense).sigmoid()
        positive = p * (functional.softplus(-outputs) - functional.softplus(-dense))
        return (positive + q * (functional.softplus(outputs) - functional.softplus(dense))).sum(-1)

    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        return self._variance(outputs) * moved

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.diag_embed(self._variance(outputs).sqrt())

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        return self._variance(outputs).sqrt() * random_signs(outputs, uniform)

    def best_constant(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid().mean(0).logit()

    def predictions(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).to(outputs.dtype)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return whether the single label of each sample is right; None for several labels, which may be half right."""
        if outputs.shape[-1] != 1:
            return None
        return (outputs > 0).flatten() == (targets.flatten() > 0.5)

    @staticmethod
    def _variance(outputs: Tensor) -> Tensor:
        return outputs.sigmoid() * (-outputs).sigmoid()
