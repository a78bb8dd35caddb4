"""A loss of the user's: a function, differentiated automatically."""

from __future__ import annotations

import hashlib
import inspect
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

from prunetaylor.core.errors import UsageError
from prunetaylor.core.text import first_line
from prunetaylor.taylor.losses.interface import ExponentialFamilyLoss, Loss
from prunetaylor.taylor.losses.squared_error import SquaredError


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
        return SquaredError()

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
        return outputs.argmax(-1) == targets
