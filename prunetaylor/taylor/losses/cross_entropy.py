"""The cross-entropy: m = softmax(z), H = diag(m) - mm'."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from prunetaylor.taylor.losses.interface import ExponentialFamilyLoss


class CrossEntropy(ExponentialFamilyLoss):
    """The cross-entropy of one class of K.

    Targets are class ids (...), or a distribution over the classes (..., K). The class id -100 stands for none: its
    loss is zero.
    """

    description = "cross-entropy with labels"
    divergence_name = "KL divergence from the dense network's outputs, no labels"

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1)

    def target_mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.shape == outputs.shape:
            return targets.to(outputs.dtype)
        return functional.one_hot(targets.clamp_min(0), outputs.shape[-1]).to(outputs.dtype)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if targets.shape == outputs.shape:
            return -(targets.to(outputs.dtype) * outputs.log_softmax(-1)).sum(-1)
        flat = functional.cross_entropy(outputs.flatten(0, -2), targets.flatten(), reduction="none")
        return flat.view(targets.shape)

    def divergence(self, outputs: Tensor, dense: Tensor) -> Tensor:
        log_p = dense.log_softmax(-1)
        return (log_p.exp() * (log_p - outputs.log_softmax(-1))).sum(-1)

    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        weighted = p * moved
        return weighted - p * weighted.sum(-1, keepdim=True)

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = outputs.softmax(-1)
        root = p.sqrt()
        return torch.diag_embed(root) - p.unsqueeze(-1) * root.unsqueeze(-2)

    def uniforms_per_prediction(self, outputs: int) -> int:
        return 1

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        """Return the gradient for a label that is drawn from the network's own distribution."""
        p = outputs.softmax(-1)
        label = (p.cumsum(-1) < uniform).sum(-1).clamp_max(p.shape[-1] - 1)
        return p - functional.one_hot(label, p.shape[-1])

    def best_constant(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1).mean(0).log()

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return outputs.argmax(-1) == (targets.argmax(-1) if targets.shape == outputs.shape else targets)

    def worst(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the largest loss that any of these outputs would have, whatever the class."""
        return float((outputs.logsumexp(-1) - outputs.min(-1).values).max())
