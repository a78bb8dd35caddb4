"""The error E is the ``task`` error (the loss with labels) or the ``divergence`` from the dense network's outputs.

Both are functions of the network's outputs z (B, K) and a reference of the same batch: targets, or the dense outputs.
``losses`` defines them for each loss. For classification they are the cross-entropy and a KL divergence, which have
the same output Hessian and gradients of one form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunetaylor.taylor.losses.by_task import LOSSES
from prunetaylor.taylor.losses.custom import CustomLoss
from prunetaylor.taylor.losses.interface import Loss

Task = Literal["classification", "binary", "regression"] | CustomLoss
"""The meaning of a network's outputs, or the user's loss that it was trained with."""


def loss_of(task: Task) -> Loss:
    """Return the loss of a task."""
    return LOSSES[task] if isinstance(task, str) else task


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

    def reference(self, dense_outputs: Tensor, targets: Tensor) -> Tensor:
        """Return what :meth:`values` compares a batch with: the dense network's outputs (B, K), or the targets."""
        if self.kind == "divergence":
            return dense_outputs.detach()
        return targets

    def values(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return the error of each sample (B,)."""
        loss = self.loss
        if self.kind == "task":
            return loss.values(outputs, reference)
        return loss.divergence_loss.divergence(outputs, reference)

    def gradient(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return dE/dz of each sample (B, K)."""
        loss = self.loss
        if self.kind == "task":
            return loss.gradient(outputs, reference)
        return loss.divergence_loss.mean(outputs) - loss.divergence_loss.mean(reference)

    def hvp(self, outputs: Tensor, reference: Tensor, moved: Tensor) -> Tensor:
        """Return Hv of each sample (B, K), with H the Hessian of E in z at ``outputs`` and v = ``moved`` (B, K)."""
        return self.loss.hvp(outputs, reference, moved)

    def quadratic_form(self, outputs: Tensor, reference: Tensor, moved: Tensor) -> Tensor:
        """Return v'Hv of each sample (B,)."""
        return (moved * self.hvp(outputs, reference, moved)).sum(1)

    def hessian_factor(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """Return S (B, K, K) with S S' = H; a Gauss-Newton diagonal sums over its columns."""
        return self.loss.hessian_factor(outputs, reference)

    def draw_uniforms(self, samples: int, outputs: int, seed: int) -> Tensor:
        """Return uniform random numbers for :meth:`sampled_factor`, a row for each sample, however they are batched."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(samples, self.loss.uniforms_per_prediction(outputs), generator=generator)

    def sampled_factor(self, outputs: Tensor, reference: Tensor, uniform: Tensor) -> Tensor:
        """Return one random s (B, K) with E[s s'] = H, from these samples' rows of :meth:`draw_uniforms`."""
        return self.loss.sampled_factor(outputs, reference, uniform.to(outputs.device))


class SampledFactors:
    """:meth:`Objective.sampled_factor` batch by batch, from uniform numbers that are drawn once for all samples."""

    def __init__(self, objective: Objective, samples: int, seed: int) -> None:
        self.objective, self.samples, self.seed = objective, samples, seed
        self._uniforms: Tensor | None = None  # (samples, 1) or (samples, K); K is known from the first outputs

    def sample(self, outputs: Tensor, reference: Tensor, start: int) -> Tensor:
        """Return s (B, K) for the outputs of the samples from index ``start`` on."""
        if self._uniforms is None:
            self._uniforms = self.objective.draw_uniforms(self.samples, outputs.shape[1], self.seed)
        return self.objective.sampled_factor(outputs, reference, self._uniforms[start : start + len(outputs)])
