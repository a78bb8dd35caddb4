"""Which error E: ``task`` (the loss with labels) or ``divergence`` (distance to the dense network's outputs).

Both are functions of the network's outputs z (B, K) and a reference of the same batch. For classification E is

    E = mean_n sum_k q_k (log q_k - log p_k),      p = softmax(z)

with q = the dense network's softmax (divergence, a KL) or the one-hot label (task, the cross-entropy): the same
gradient p - q and the same output Hessian diag(p) - pp' (Martens 2020, section 9). For anything else E is the squared
error, summed over the K outputs and halved, with gradient z - r and the identity as output Hessian.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunetaylor.errors import DataError


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
    """``kind`` says what the outputs are; ``of`` says what they are compared with."""

    kind: Literal["classes", "values"]
    of: Literal["task", "divergence"]

    def describe(self) -> str:
        names = {
            ("classes", "task"): "cross-entropy with labels",
            ("classes", "divergence"): "KL divergence from the dense network's outputs, no labels",
            ("values", "task"): "halved squared error with targets",
            ("values", "divergence"): "halved squared error from the dense network's outputs, no labels",
        }
        return names[self.kind, self.of]

    def reference(self, dense_outputs: Tensor, targets: Tensor) -> Tensor:
        """What :meth:`values` compares with, for one batch: outputs (B, K) of the dense network, or targets."""
        if self.of == "divergence":
            return dense_outputs.detach()
        return targets

    def values(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """The error of each sample, (B,)."""
        if self.kind == "values":
            return 0.5 * (outputs - self._wanted(outputs, reference)).square().sum(1)
        if self.of == "task":
            return nn.functional.cross_entropy(outputs, reference, reduction="none")
        wanted = reference.log_softmax(1)
        return (wanted.exp() * (wanted - outputs.log_softmax(1))).sum(1)

    def gradient(self, outputs: Tensor, reference: Tensor) -> Tensor:
        """dE/dz of each sample, (B, K)."""
        wanted = self._wanted(outputs, reference)
        return (outputs.softmax(1) if self.kind == "classes" else outputs) - wanted

    def second(self, outputs: Tensor, moved: Tensor) -> Tensor:
        """v'Hv of each sample (B,), H the Hessian of E in z at ``outputs`` and v = ``moved`` (B, K)."""
        if self.kind == "values":
            return moved.square().sum(1)
        p = outputs.softmax(1)
        return (p * moved.square()).sum(1) - (p * moved).sum(1).square()

    def product(self, outputs: Tensor, moved: Tensor) -> Tensor:
        """Hv of each sample (B, K), H and v as in :meth:`second`."""
        if self.kind == "values":
            return moved
        weighted = outputs.softmax(1) * moved
        return weighted - outputs.softmax(1) * weighted.sum(1, keepdim=True)

    def factor(self, outputs: Tensor) -> Tensor:
        """S (B, K, K) with S S' = H: the exact sum over outputs that a Gauss-Newton diagonal runs over."""
        if self.kind == "values":
            return torch.eye(outputs.shape[1], device=outputs.device, dtype=outputs.dtype).expand(len(outputs), -1, -1)
        p = outputs.softmax(1)
        root = p.sqrt()
        return torch.diag_embed(root) - p.unsqueeze(2) * root.unsqueeze(1)

    def draws(self, samples: int, outputs: int, seed: int) -> Tensor:
        """Uniform random numbers for :meth:`sampled_factor`, a row a sample: the same however samples are batched."""
        columns = 1 if self.kind == "classes" else outputs
        return torch.rand(samples, columns, generator=torch.Generator().manual_seed(seed))

    def sampled_factor(self, outputs: Tensor, uniform: Tensor) -> Tensor:
        """One random s (B, K) with E[s s'] = H, from its samples' rows of :meth:`draws`.

        For classes the gradient for a label that the network itself draws, for values random signs.
        """
        uniform = uniform.to(outputs.device)
        if self.kind == "values":
            return torch.where(uniform < 0.5, -1.0, 1.0).to(outputs.dtype)
        p = outputs.softmax(1)
        label = (p.cumsum(1) < uniform).sum(1).clamp_max(p.shape[1] - 1)
        return p - nn.functional.one_hot(label, p.shape[1])

    def _wanted(self, outputs: Tensor, reference: Tensor) -> Tensor:
        if self.kind == "values":
            return reference.reshape(outputs.shape).to(outputs.dtype)
        if self.of == "task":
            return nn.functional.one_hot(reference, outputs.shape[1]).to(outputs.dtype)
        return reference.softmax(1)


class SampledFactors:
    """:meth:`Objective.sampled_factor` batch by batch, all from one draw: its numbers are held, not drawn anew."""

    def __init__(self, objective: Objective, samples: int, seed: int) -> None:
        self.objective, self.samples, self.seed = objective, samples, seed
        self._draws: Tensor | None = None  # (samples, 1) or (samples, K); K is known from the first outputs

    def of(self, outputs: Tensor, start: int) -> Tensor:
        """s (B, K) for the outputs of the samples from index ``start`` on."""
        if self._draws is None:
            self._draws = self.objective.draws(self.samples, outputs.shape[1], self.seed)
        return self.objective.sampled_factor(outputs, self._draws[start : start + len(outputs)])
