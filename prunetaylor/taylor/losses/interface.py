"""The interface of a loss: its values, derivatives and divergence, as functions of a network's outputs.

The last dimension has the K outputs of a prediction: outputs are (B, K), or (B, P, K) where a sample has P predictions
(tokens, pixels). Every function works on single predictions; ``objective.py`` weighs those of a sample.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

SWAPPED_TARGETS = 16
"""Targets of other samples that each output is compared with to estimate how large a loss may be."""


class Loss(ABC):
    """A loss with its derivatives, each computed for single predictions.

    Arguments: ``outputs`` (..., K) are the network's, ``dense`` (..., K) the dense network's, ``targets`` those of the
    data. The leading dimensions (...) are those of the predictions: samples (B,), or samples and positions (B, P).
    """

    description: str
    """The name of the loss with targets, for reports."""
    divergence_name: str
    """The name of its divergence, for reports."""

    @property
    @abstractmethod
    def divergence_loss(self) -> ExponentialFamilyLoss:
        """Return the loss whose divergence measures distances between outputs."""

    @abstractmethod
    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each prediction (...)."""

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient (..., K) in the outputs."""

    @abstractmethod
    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        """Return Hv (..., K), with H the Hessian in the outputs and v = ``moved`` (..., K)."""

    @abstractmethod
    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return S (..., K, K) with S S' = H."""

    def uniforms_per_prediction(self, outputs: int) -> int:
        """Return how many uniform random numbers :meth:`sampled_factor` needs for a prediction of so many outputs."""
        return outputs

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        """Return one random s (..., K) with E[s s'] = H, from ``uniform`` (..., :meth:`uniforms_per_prediction`)."""
        return (self.hessian_factor(outputs, targets) @ random_signs(outputs, uniform).unsqueeze(-1)).squeeze(-1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return for each prediction (...) whether it is right; None if it is not simply right or wrong."""
        return None

    def worst(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the largest loss that any of these outputs would have with the target of another of the samples."""
        shifts = {len(targets) * k // (SWAPPED_TARGETS + 1) for k in range(SWAPPED_TARGETS + 1)}
        return max(float(self.values(outputs, targets.roll(shift, 0)).max()) for shift in shifts)


class ExponentialFamilyLoss(Loss):
    """A loss whose outputs are the natural parameters of an exponential family (see the package's docstring)."""

    @property
    def divergence_loss(self) -> ExponentialFamilyLoss:
        return self

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """Return m(z), the mean (..., K) that the outputs stand for."""

    @abstractmethod
    def target_mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the targets in the form of a mean, (..., K)."""

    @abstractmethod
    def divergence(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """Return the distance (...) to the dense outputs; there it is zero, and so is its gradient."""

    @abstractmethod
    def best_constant(self, outputs: Tensor) -> Tensor:
        """Return the outputs (K,) nearest to all of these (N, K), as an input-independent network would give them."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the outputs in the form of targets: class ids (...), 0 or 1 (..., K), or values (..., K)."""

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.mean(outputs) - self.target_mean(outputs, targets)


def random_signs(outputs: Tensor, uniform: Tensor) -> Tensor:
    """Return -1 or 1 for each of ``uniform``, in the outputs' type."""
    return torch.where(uniform < 0.5, -1.0, 1.0).to(outputs.dtype)
