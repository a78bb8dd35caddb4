"""The error E is the ``task`` error (the loss with labels) or the ``divergence`` from the dense network's outputs.

Both are functions of the network's outputs z and a reference of the same batch: targets, or the dense outputs. Outputs
are (B, K), or (B, P, K) where a sample has P predictions (tokens, pixels); a loss of the user's gets (B, ...), as the
network gives them. ``losses`` defines both for each loss. For classification they are the cross-entropy and a KL
divergence, which have the same output Hessian and gradients of one form.

The error of a sample is the mean over its positions that count. Its Hessian is then block-diagonal over positions, each
block with the weight 1 / count, and a sampled factor has the root of that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunetaylor.taylor.losses.by_task import LOSSES
from prunetaylor.taylor.losses.custom import CustomLoss
from prunetaylor.taylor.losses.interface import Loss

Task = Literal["classification", "binary", "regression", "features"] | CustomLoss
"""The meaning of a network's outputs, or the user's loss that it was trained with; features have no targets."""

IGNORED = -100
"""The class id of a position that does not count, as in torch's cross-entropy."""

_STORED_UNIFORMS = 1 << 26
"""Uniform random numbers that are drawn for all samples at once, at most; more are drawn sample by sample."""


def loss_of(task: Task) -> Loss:
    """Return the loss of a task."""
    return LOSSES[task] if isinstance(task, str) else task


@dataclass(frozen=True)
class Reference:
    """A reference is compared with the outputs of some samples.

    Attributes:
        values: the targets (B, ...), or the dense network's outputs.
        counted: (B, P) booleans, whether a position counts; None: all do, except those whose class id is ``IGNORED``.
    """

    values: Tensor
    counted: Tensor | None = None

    def rows(self, low: int, high: int) -> Reference:
        """Return the reference of some of the samples."""
        return Reference(self.values[low:high], None if self.counted is None else self.counted[low:high])


def labelled_positions(outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Return whether each position (B, P) has a class id that counts; None where targets are no ids of positions."""
    if outputs.dim() != 3 or targets.is_floating_point() or targets.shape != outputs.shape[:2]:
        return None
    return targets != IGNORED


@dataclass(frozen=True)
class Objective:
    """An error of the outputs of ``task``; ``kind`` selects the loss with labels or the divergence."""

    task: Task
    kind: Literal["task", "divergence"]

    @property
    def loss(self) -> Loss:
        """Return the loss whose targets, or for the divergence whose outputs, are the reference."""
        loss = loss_of(self.task)
        return loss if self.kind == "task" else loss.divergence_loss

    def describe(self) -> str:
        """Return the error's name, for reports."""
        loss = loss_of(self.task)
        return loss.description if self.kind == "task" else loss.divergence_name

    def values(self, outputs: Tensor, reference: Reference) -> Tensor:
        """Return the error of each sample (B,)."""
        loss, compared = self.loss, reference.values
        if self.kind == "task":
            values = loss.values(outputs, compared)
        elif isinstance(self.task, CustomLoss):
            values = loss.divergence_loss.divergence(outputs.flatten(1), compared.flatten(1))
        else:
            values = loss.divergence_loss.divergence(outputs, compared)
        weights = self._weights(outputs, reference)
        return values if weights is None else (values * weights).sum(1)

    def gradient(self, outputs: Tensor, reference: Reference) -> Tensor:
        """Return dE/dz of each sample, in the shape of the outputs."""
        loss = self.loss
        if self.kind == "task":
            gradient = loss.gradient(outputs, reference.values)
        else:
            gradient = loss.divergence_loss.mean(outputs) - loss.divergence_loss.mean(reference.values)
        return self._weighted(gradient, self._weights(outputs, reference))

    def hvp(self, outputs: Tensor, reference: Reference, moved: Tensor) -> Tensor:
        """Return Hv of each sample, with H the Hessian of E in z at ``outputs`` and v = ``moved`` of their shape."""
        product = self.loss.hvp(outputs, reference.values, moved)
        return self._weighted(product, self._weights(outputs, reference))

    def quadratic_form(self, outputs: Tensor, reference: Reference, moved: Tensor) -> Tensor:
        """Return v'Hv of each sample (B,)."""
        return (moved * self.hvp(outputs, reference, moved)).flatten(1).sum(1)

    def hessian_factor(self, outputs: Tensor, reference: Reference) -> Tensor:
        """Return S (B, K, K) with S S' = H for outputs (B, K); a Gauss-Newton diagonal sums over its columns."""
        return self.loss.hessian_factor(outputs, reference.values)

    def sampled_factor(self, outputs: Tensor, reference: Reference, uniform: Tensor) -> Tensor:
        """Return one random s with E[s s'] = H, in the shape of the outputs.

        ``uniform``: random numbers in [0, 1), (B, ``uniforms_per_sample``).
        """
        uniform = uniform.to(outputs.device)
        if outputs.dim() != 2:
            uniform = uniform.view(*(outputs.shape if isinstance(self.task, CustomLoss) else outputs.shape[:2]), -1)
        factor = self.loss.sampled_factor(outputs, reference.values, uniform)
        weights = self._weights(outputs, reference)
        return self._weighted(factor, None if weights is None else weights.sqrt())

    def uniforms_per_sample(self, outputs: Tensor) -> int:
        """Return how many random numbers :meth:`sampled_factor` needs for each sample of such outputs."""
        predictions = 1 if isinstance(self.task, CustomLoss) else math.prod(outputs.shape[1:-1])
        return predictions * self.loss.uniforms_per_prediction(outputs[:1].numel() // predictions)

    def _weights(self, outputs: Tensor, reference: Reference) -> Tensor | None:
        """Return the weight of each position (B, P) in its sample's error; None without positions."""
        if outputs.dim() != 3 or isinstance(self.task, CustomLoss):
            return None
        counted = reference.counted
        if counted is None:
            counted = labelled_positions(outputs, reference.values)
        if counted is None:
            return outputs.new_full(outputs.shape[:2], 1 / outputs.shape[1])
        return counted / counted.sum(1, keepdim=True).clamp_min(1)

    @staticmethod
    def _weighted(vectors: Tensor, weights: Tensor | None) -> Tensor:
        return vectors if weights is None else vectors * weights.unsqueeze(-1)


class SampledFactors:
    """:meth:`Objective.sampled_factor` batch by batch, from random numbers that do not depend on the batches."""

    def __init__(self, objective: Objective, samples: int, seed: int) -> None:
        self.objective, self.samples, self.seed = objective, samples, seed
        self._uniforms: Tensor | None = None  # (samples, uniforms per sample), known from the first outputs

    def sample(self, outputs: Tensor, reference: Reference, start: int) -> Tensor:
        """Return s in the shape of the outputs, for those of the samples from index ``start`` on."""
        return self.objective.sampled_factor(outputs, reference, self._draw(outputs, start))

    def _draw(self, outputs: Tensor, start: int) -> Tensor:
        count, end = self.objective.uniforms_per_sample(outputs), start + len(outputs)
        if outputs.dim() > 2 or self.samples * count > _STORED_UNIFORMS:  # or as many as a sample has positions
            return torch.stack([self._draw_one(index, count) for index in range(start, end)])
        if self._uniforms is None:
            generator = torch.Generator().manual_seed(self.seed)
            self._uniforms = torch.rand(self.samples, count, generator=generator)
        return self._uniforms[start:end]

    def _draw_one(self, index: int, count: int) -> Tensor:
        # Seeds of one run lie far apart (``gauss_newton_diagonal``), and so do those of its samples.
        seed = (self.seed * 0x9E3779B97F4A7C15 + index * 0xBF58476D1CE4E5B9) % 2**63
        return torch.rand(count, generator=torch.Generator().manual_seed(seed))
