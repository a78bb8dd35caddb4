"""Which error E: ``task`` (the loss with labels) or ``divergence`` (distance to the dense network's outputs).

Both are functions of the network's outputs z (B, K) and a reference of the same batch: targets, or the dense outputs.
What they are for each loss stands in ``losses.py``; of classes they are the cross-entropy and a KL divergence, which
have the same output Hessian and gradients of one form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from prunetaylor.core.errors import DataError
from prunetaylor.taylor.losses import LOSSES, CustomLoss, Loss

Task = Literal["classification", "binary", "regression"] | CustomLoss
"""What a network's outputs are, or the loss of the user's that it was trained with."""


def loss_of(task: Task) -> Loss:
    return LOSSES[task] if isinstance(task, str) else task


def outputs_of(result: Any) -> Tensor:
    """The (B, K) outputs in what a network returned: a tensor, or the logits of a richer result."""
    for name in ("logits", "out"):
        if isinstance(result, dict) and name in result:
            result = result[name]
        elif hasattr(result, name) and not isinstance(result, Tensor):
            result = getattr(result, name)
    if isinstance(result, tuple | list) and result:
        result = result[0]
    if not isinstance(result, Tensor):
        raise DataError(
            f"the network returned {type(result).__name__}, not a tensor", "wrap it so that it returns its outputs"
        )
    return result.flatten(1) if result.dim() > 1 else result.unsqueeze(1)


@dataclass(frozen=True)
class Objective:
    """``task`` says what the outputs are, or is the user's loss; ``kind`` says what they are compared with."""

    task: Task
    kind: Literal["task", "divergence"]

    @property
    def loss(self) -> Loss:
        """Whose targets, or for the divergence whose outputs, are the reference."""
        loss = loss_of(self.task)
        return loss if self.kind == "task" else loss.divergence_loss

    def describe(self) -> str:
        loss = loss_of(self.task)
        return loss.description if self.kind == "task" else loss.divergence_name

    def reference(self, dense_outputs: Tensor, targets: Tensor) -> Tensor:
        """What :meth:`values` compares with, for one batch: outputs (B, K) of the dense network, or targets."""
        if self.kind == "divergence":
            return dense_outputs.detach()
        return targets

    def values(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """The error of each sample, (B,)."""
        loss = self.loss
        if self.kind == "task":
            return loss.values(outputs, reference)
        return loss.divergence_loss.divergence(outputs, reference)

    def gradient(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """dE/dz of each sample, (B, K)."""
        loss = self.loss
        if self.kind == "task":
            return loss.gradient(outputs, reference)
        return loss.divergence_loss.mean(outputs) - loss.divergence_loss.mean(reference)

    def hvp(self, outputs: Tensor, reference: Tensor, moved: Tensor) -> Tensor:
        """Hv of each sample (B, K), H the Hessian of E in z at ``outputs`` and v = ``moved`` (B, K)."""
        return self.loss.hvp(outputs, reference, moved)

    def quadratic_form(self, outputs: Tensor, reference: Tensor, moved: Tensor) -> Tensor:
        """v'Hv of each sample (B,)."""
        return (moved * self.hvp(outputs, reference, moved)).sum(1)

    def hessian_factor(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """S (B, K, K) with S S' = H: the exact sum over outputs that a Gauss-Newton diagonal runs over."""
        return self.loss.hessian_factor(outputs, reference)

    def draws(self, samples: int, outputs: int, seed: int) -> Tensor:
        """Uniform random numbers for :meth:`sampled_factor`, a row a sample: the same however samples are batched."""
        return torch.rand(samples, self.loss.columns(outputs), generator=torch.Generator().manual_seed(seed))

    def sampled_factor(self, outputs: Tensor, reference: Tensor, uniform: Tensor) -> Tensor:
        """One random s (B, K) with E[s s'] = H, from its samples' rows of :meth:`draws`."""
        return self.loss.sampled_factor(outputs, reference, uniform.to(outputs.device))


class SampledFactors:
    """:meth:`Objective.sampled_factor` batch by batch, all from one draw: its numbers are held, not drawn anew."""

    def __init__(self, objective: Objective, samples: int, seed: int) -> None:
        self.objective, self.samples, self.seed = objective, samples, seed
        self._draws: Tensor | None = None  # (samples, 1) or (samples, K); K is known from the first outputs

    def of(self, outputs: Tensor, reference: Tensor, start: int) -> Tensor:
        """s (B, K) for the outputs of the samples from index ``start`` on."""
        if self._draws is None:
            self._draws = self.objective.draws(self.samples, outputs.shape[1], self.seed)
        return self.objective.sampled_factor(outputs, reference, self._draws[start : start + len(outputs)])
