"""The losses that networks are trained with, as functions of their outputs z (B, K): values, derivatives, divergences.

Those of an exponential family, whose parameters the outputs are, share one form (Martens 2020, section 9): with m(z)
the mean that the outputs stand for and m' what is wanted of it (the target, or the dense network's mean), the gradient
is m(z) - m', and the output Hessian that of z alone, whatever is wanted:

    cross-entropy   m = softmax(z)      H = diag(m) - mm'         one class of K
    bce             m = sigmoid(z)      H = diag(m (1 - m))       K answers of yes or no, the outputs being logits
    mse             m = z               H = I                     K values; halved, so that this is it

Any other loss is a function of the user's; it is differentiated, and its divergence is the halved squared error.
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

OTHERS = 16
"""Targets of other samples that each output is held against, to see how large a loss may be."""


class Loss(ABC):
    """Per sample; ``targets`` (B, ...) are what a data set gives, ``dense`` (B, K) the dense network's outputs."""

    description: str
    """What it is called, with targets."""
    divergence_name: str
    """What its divergence is called."""

    @property
    @abstractmethod
    def divergence_loss(self) -> ExponentialFamilyLoss:
        """Where distances between outputs are measured."""

    @abstractmethod
    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """(B,)."""

    @abstractmethod
    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """In the outputs, (B, K)."""

    @abstractmethod
    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        """Hv (B, K), H the Hessian in the outputs and v = ``moved`` (B, K)."""

    @abstractmethod
    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """S (B, K, K) with S S' = H."""

    def columns(self, outputs: int) -> int:
        """Uniform numbers that :meth:`sampled_factor` needs for a sample."""
        return outputs

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        """One random s (B, K) with E[s s'] = H."""
        return (self.hessian_factor(outputs, targets) @ _signs(outputs, uniform).unsqueeze(2)).squeeze(2)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """(B,) boolean, whether each answer is right; None where answers are not simply right or wrong."""
        return None

    def worst(self, outputs: Tensor, targets: Tensor) -> float:
        """The largest loss that any of these outputs has, if its target were that of another of the samples."""
        shifts = {len(targets) * k // (OTHERS + 1) for k in range(OTHERS + 1)}
        return max(float(self.values(outputs, targets.roll(shift, 0)).max()) for shift in shifts)


class ExponentialFamilyLoss(Loss):
    """Of an exponential family: see above."""

    @property
    def divergence_loss(self) -> ExponentialFamilyLoss:
        return self

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """m(z), (B, K)."""

    @abstractmethod
    def target_mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The targets in the form of a mean, (B, K)."""

    @abstractmethod
    def divergence(self, outputs: Tensor, dense: Tensor) -> Tensor:
        """(B,); zero, and flat, where the outputs are the dense ones."""

    @abstractmethod
    def best_constant(self, outputs: Tensor) -> Tensor:
        """The one answer (K,) that is nearest to all of these."""

    @abstractmethod
    def predictions(self, outputs: Tensor) -> Tensor:
        """What the outputs say, in the form of targets."""

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.mean(outputs) - self.target_mean(outputs, targets)


class CrossEntropy(ExponentialFamilyLoss):
    description = "cross-entropy with labels"
    divergence_name = "KL divergence from the dense network's outputs, no labels"

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(1)

    def target_mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.one_hot(targets, outputs.shape[1]).to(outputs.dtype)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def divergence(self, outputs: Tensor, dense: Tensor) -> Tensor:
        wanted = dense.log_softmax(1)
        return (wanted.exp() * (wanted - outputs.log_softmax(1))).sum(1)

    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        p = outputs.softmax(1)
        weighted = p * moved
        return weighted - p * weighted.sum(1, keepdim=True)

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        p = outputs.softmax(1)
        root = p.sqrt()
        return torch.diag_embed(root) - p.unsqueeze(2) * root.unsqueeze(1)

    def columns(self, outputs: int) -> int:
        return 1

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        """The gradient for a label that the network itself draws."""
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
        """Of any class."""
        return float((outputs.logsumexp(1) - outputs.min(1).values).max())


class Binary(ExponentialFamilyLoss):
    description = "binary cross-entropy with labels"
    divergence_name = "binary KL divergence from the dense network's outputs, no labels"

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.sigmoid()

    def target_mean(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.reshape(outputs.shape).to(outputs.dtype)

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = self.target_mean(outputs, targets)
        return functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none").sum(1)

    def divergence(self, outputs: Tensor, dense: Tensor) -> Tensor:
        yes, no = dense.sigmoid(), (-dense).sigmoid()
        apart = yes * (functional.softplus(-outputs) - functional.softplus(-dense))
        return (apart + no * (functional.softplus(outputs) - functional.softplus(dense))).sum(1)

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
        """Of one answer a sample; several are neither right nor wrong together."""
        if outputs.shape[1] != 1:
            return None
        return (outputs > 0).flatten() == (targets.flatten() > 0.5)

    @staticmethod
    def _variance(outputs: Tensor) -> Tensor:
        return outputs.sigmoid() * (-outputs).sigmoid()


class SquaredError(ExponentialFamilyLoss):
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
    """A function of the user's: (outputs (B, K), targets (B, ...)) -> a mean, or a value a sample (B,).

    It is called with one sample at a time, under ``vmap``. Where it is not convex in the outputs the Hessian's negative
    eigenvalues count as zero: the Gauss-Newton matrix wants none (Martens 2020, section 8).
    """

    name: str
    source: str  # tells one content of its file from another: fits are kept by it, and by what ``said`` gives
    function: Callable[[Tensor, Tensor], Tensor] = field(repr=False, compare=False)

    @classmethod
    def from_function(cls, name: str, function: Any) -> CustomLoss:
        """UsageError where it is no function."""
        if not callable(function):
            raise UsageError(
                f"loss={name} is a {type(function).__name__}, not a function", "name one of (outputs, targets)"
            )
        try:
            text = Path(inspect.getsourcefile(function) or "").read_bytes()
        except (OSError, TypeError):  # of no file: nothing that is fitted with it is kept for another process
            text = uuid.uuid4().bytes
        return cls(name, hashlib.sha256(text).hexdigest(), function)

    @property
    def description(self) -> str:  # type: ignore[override]
        return f"{self.name} with targets"

    divergence_name = SquaredError.divergence_name

    @property
    def divergence_loss(self) -> ExponentialFamilyLoss:
        return LOSSES["regression"]

    def _one(self, output: Tensor, target: Tensor) -> Tensor:
        return self.function(output.unsqueeze(0), target.unsqueeze(0)).sum()

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        try:
            found: Tensor = vmap(self._one)(outputs, targets)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UsageError(
                f"loss={self.name} fails on outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}: "
                f"{first_line(error)}",
                "it takes (outputs, targets) of torch tensors and gives a number a sample, or their mean",
            ) from error
        return found

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        found: Tensor = vmap(grad(self._one))(outputs, targets)
        return found

    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        s = self.hessian_factor(outputs, targets)
        return (s @ (s.mT @ moved.unsqueeze(2))).squeeze(2)

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(vmap(hessian(self._one))(outputs, targets))
        root: Tensor = values.clamp_min(0).sqrt()
        return torch.mul(vectors, root.unsqueeze(1))

    def said(self, outputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Values, gradients and second derivatives along fixed vectors: what the function imports shows in these."""
        along = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
        return [self.values(outputs, targets), *jvp(lambda z: self.gradient(z, targets), (outputs,), (along,))]

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Where the targets are class ids."""
        if targets.is_floating_point() or targets.dim() != 1 or outputs.shape[1] == 1:
            return None
        return outputs.argmax(1) == targets


def _signs(outputs: Tensor, uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0).to(outputs.dtype)


LOSSES: dict[str, ExponentialFamilyLoss] = {
    "classification": CrossEntropy(),
    "binary": Binary(),
    "regression": SquaredError(),
}
"""By what the outputs are."""
