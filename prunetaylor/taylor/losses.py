"""The losses that networks are trained with, as functions of their outputs z (B, K): values, derivatives, divergences.

Those of an exponential family, whose parameters the outputs are, share one form (Martens 2020, section 9): with m(z)
the mean that the outputs stand for and m' the mean that it is compared with (the target's or the dense network's), the
gradient is m(z) - m', and the output Hessian depends on z alone, not on m':

    cross-entropy   m = softmax(z)      H = diag(m) - mm'         one class of K
    bce             m = sigmoid(z)      H = diag(m (1 - m))       K labels of 0 or 1, the outputs being logits
    mse             m = z               H = I                     K values; halved, so that H = I

Any other loss is a function of the user; it is differentiated, and its divergence is the halved squared error.
"""

from __future__ import annotations

import hashlib
import inspect
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap
from torch.nn import functional

from prunetaylor.core.errors import UsageError
from prunetaylor.core.text import first_line

SWAPPED_TARGETS = 16
"""Targets of other samples that each output is compared with to estimate how large a loss may be."""


class Loss(ABC):
    """A loss with its derivatives, each computed for single samples.

    Arguments: ``outputs`` (B, K) are the network's, ``targets`` (B, ...) the data set's, ``dense`` (B, K) the dense
    network's outputs.
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
        """Return the loss of each sample (B,)."""

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the gradient (B, K) in the outputs."""

    @abstractmethod
    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        """Return Hv (B, K), with H the Hessian in the outputs and v = ``moved`` (B, K)."""

    @abstractmethod
    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return S (B, K, K) with S S' = H."""

    def uniforms_per_sample(self, outputs: int) -> int:
        """Return how many uniform random numbers :meth:`sampled_factor` needs for a sample with so many outputs."""
        return outputs

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        """Return one random s (B, K) with E[s s'] = H, drawn from ``uniform`` (B, :meth:`uniforms_per_sample`)."""
        return (self.hessian_factor(outputs, targets) @ _signs(outputs, uniform).unsqueeze(2)).squeeze(2)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return for each sample (B,) whether the prediction is right; None if it is not simply right or wrong."""
        return None

    def worst(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the largest loss that any of these outputs would have with the target of another of the samples."""
        shifts = {len(targets) * k // (SWAPPED_TARGETS + 1) for k in range(SWAPPED_TARGETS + 1)}
        return max(float(self.values(outputs, targets.roll(shift, 0)).max()) for shift in shifts)


class ExponentialFamilyLoss(Loss):
    """A loss whose outputs are the natural parameters of an exponential family (see the module's docstring)."""

    @property
    def divergence_loss(self) -> ExponentialFamilyLoss:
        return self

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """Return m(z), the mean (B, K) that the outputs stand for."""

    @abstractmethod
    def target_mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the targets in the form of a mean, (B, K)."""

    @abstractmethod
    def divergence(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """Return the distance (B,) to the dense outputs; there it is zero, and so is its gradient."""

    @abstractmethod
    def best_constant(self, outputs: Tensor) -> Tensor:
        """Return the outputs (K,) that are nearest to all of these, as an input-independent network would give them."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """Return the outputs in the form of targets: class ids (B,), 0 or 1 (B, K), or values (B, K)."""

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.mean(outputs) - self.target_mean(outputs, targets)


class CrossEntropy(ExponentialFamilyLoss):
    """The cross-entropy of one class of K."""

    description = "cross-entropy with labels"
    divergence_name = "KL divergence from the dense network's outputs, no labels"

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1)

    def target_mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def divergence(self, outputs: Tensor, dense: Tensor) -> Tensor:
        log_p = dense.log_softmax(1)
        return (log_p.exp() * (log_p - outputs.log_softmax(1))).sum(1)

    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        p = outputs.softmax(1)
        weighted = p * moved
        return weighted - p * weighted.sum(1, keepdim=True)

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = outputs.softmax(1)
        root = p.sqrt()
        return torch.diag_embed(root) - p.unsqueeze(2) * root.unsqueeze(1)

    def uniforms_per_sample(self, outputs: int) -> int:
        return 1

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        """Return the gradient for a label that is drawn from the network's own distribution."""
        p = outputs.softmax(1)
        label = (p.cumsum(1) < uniform).sum(1).clamp_max(p.shape[1] - 1)
        return p - functional.one_hot(label, p.shape[1])

    def best_constant(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1).mean(0).log()

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(1)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        return outputs.argmax(1) == targets

    def worst(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the largest loss that any of these outputs would have, whatever the class."""
        return float((outputs.logsumexp(1) - outputs.min(1).values).max())


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
        return functional.binary_cross_entropy_with_logits(outputs, mean, reduction="none").sum(1)

    def divergence(self, outputs: Tensor, dense: Tensor) -> Tensor:
        p, q = dense.sigmoid(), (-dense).sigmoid()
        positive = p * (functional.softplus(-outputs) - functional.softplus(-dense))
        return (positive + q * (functional.softplus(outputs) - functional.softplus(dense))).sum(1)

    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        return self._variance(outputs) * moved

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.diag_embed(self._variance(outputs).sqrt())

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        return self._variance(outputs).sqrt() * _signs(outputs, uniform)

    def best_constant(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid().mean(0).logit()

    def predictions(self, outputs: Tensor) -> Tensor:
        return (outputs > 0).to(outputs.dtype)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return whether the single label of each sample is right; None for several labels, which may be half right."""
        if outputs.shape[1] != 1:
            return None
        return (outputs > 0).flatten() == (targets.flatten() > 0.5)

    @staticmethod
    def _variance(outputs: Tensor) -> Tensor:
        return outputs.sigmoid() * (-outputs).sigmoid()


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
        return 0.5 * (outputs - dense).square().sum(1)

    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        return moved

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.eye(outputs.shape[1], device=outputs.device, dtype=outputs.dtype).expand(len(outputs), -1, -1)

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        return _signs(outputs, uniform)

    def best_constant(self, outputs: Tensor) -> Tensor:
        return outputs.mean(0)

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs


@dataclass(frozen=True)
class CustomLoss(Loss):
    """A user's function: (outputs (B, K), targets (B, ...)) -> a mean, or a value for each sample (B,).

    It is called with one sample at a time, under ``vmap``. Where it is not convex in the outputs, negative eigenvalues
    of the Hessian count as zero, because the Gauss-Newton matrix is positive semidefinite (Martens 2020, section 8).
    """

    name: str
    source: str  # a digest of its file: part of the cache's key, with the values that ``probe`` returns
    function: Callable[[Tensor, Tensor], Tensor] = field(repr=False, compare=False)

    @classmethod
    def from_function(cls, name: str, function: Any) -> CustomLoss:
        """Return the loss that calls ``function``. Raises UsageError: it is not callable."""
        if not callable(function):
            raise UsageError(
                f"loss={name} is a {type(function).__name__}, not a function", "name one of (outputs, targets)"
            )
        try:
            text = Path(inspect.getsourcefile(function) or "").read_bytes()
        except (OSError, TypeError):  # without a file no fit can be reused by another process
            text = uuid.uuid4().bytes
        return cls(name, hashlib.sha256(text).hexdigest(), function)

    @property
    def description(self) -> str:  # type: ignore[override]
        """Return the name of the loss, for reports."""
        return f"{self.name} with targets"

    divergence_name = SquaredError.divergence_name

    @property
    def divergence_loss(self) -> ExponentialFamilyLoss:
        return LOSSES["regression"]

    def _sample_loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.function(output.unsqueeze(0), target.unsqueeze(0)).sum()

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        try:
            values: Tensor = vmap(self._sample_loss)(outputs, targets)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UsageError(
                f"loss={self.name} fails on outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}: "
                f"{first_line(error)}",
                "it must take torch tensors (outputs, targets) and return a value for each sample, or their mean",
            ) from error
        return values

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        gradient: Tensor = vmap(grad(self._sample_loss))(outputs, targets)
        return gradient

    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        s = self.hessian_factor(outputs, targets)
        return (s @ (s.mT @ moved.unsqueeze(2))).squeeze(2)

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(vmap(hessian(self._sample_loss))(outputs, targets))
        root: Tensor = values.clamp_min(0).sqrt()
        return torch.mul(vectors, root.unsqueeze(1))

    def probe(self, outputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Return values, gradients and second derivatives along fixed vectors.

        They change with the code that the function imports, which the digest of its own file misses.
        """
        along = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
        return [self.values(outputs, targets), *jvp(lambda z: self.gradient(z, targets), (outputs,), (along,))]

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return whether each prediction is right if the targets are class ids, else None."""
        if targets.is_floating_point() or targets.dim() != 1 or outputs.shape[1] == 1:
            return None
        return outputs.argmax(1) == targets


def _signs(outputs: Tensor, uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(outputs.dtype)


LOSSES: dict[str, ExponentialFamilyLoss] = {
    "classification": CrossEntropy(),
    "binary": BinaryCrossEntropy(),
    "regression": SquaredError(),
}
"""The loss of each task."""
