"""A loss of the user's: a function, differentiated automatically.

Its Hessian in the outputs of a sample is never formed where a sample has many outputs. Products with it are forward
derivatives of reverse ones (Pearlmutter 1994), and functions of it come from a few Lanczos steps: with the basis V and
tridiagonal matrix T of the Krylov space from v, f(H) v = |v| V f(T) e_1 (Golub & Van Loan 2013, section 10.2).
"""

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

from prunetaylor.core.errors import PruneTaylorError, UsageError
from prunetaylor.core.text import first_line
from prunetaylor.taylor.losses.interface import ExponentialFamilyLoss, Loss, random_signs
from prunetaylor.taylor.losses.squared_error import SquaredError

FORMED = 16
"""Up to so many outputs of a sample its Hessian is formed; beyond, functions of it come from Lanczos steps."""
LANCZOS_STEPS = 16
"""Products with the Hessian for each function of it."""


@dataclass(frozen=True)
class CustomLoss(Loss):
    """A user's function: (outputs (B, ...), targets (B, ...)) -> a mean, or a value for each sample (B,).

    Outputs have the network's own shape, and targets the data's. It is called with one sample at a time: under
    ``vmap``, or where that is impossible in a loop. Where it is not convex in the outputs, negative eigenvalues of the
    Hessian count as zero, because the Gauss-Newton matrix is positive semidefinite (Martens 2020, section 8).
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

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._by_sample(self._sample_loss, outputs, targets)

    def gradient(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._by_sample(grad(self._sample_loss), outputs, targets)

    def hvp(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        if outputs[0].numel() > FORMED:
            return self._function_of_hessian(outputs, targets, moved, lambda eigenvalues: eigenvalues.clamp_min(0))
        s = self.hessian_factor(outputs, targets)
        return (s @ (s.mT @ moved.reshape(len(s), -1, 1))).view(moved.shape)

    def hessian_factor(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return S (B, K, K) with S S' = H; only for few outputs, K of a sample."""
        each = outputs[0].numel()
        matrices = self._by_sample(hessian(self._sample_loss), outputs, targets).reshape(len(outputs), each, each)
        values, vectors = torch.linalg.eigh(matrices)
        root: Tensor = values.clamp_min(0).sqrt()
        return torch.mul(vectors, root.unsqueeze(1))

    def sampled_factor(self, outputs: Tensor, targets: Tensor, uniform: Tensor) -> Tensor:
        signs = random_signs(outputs, uniform).view(outputs.shape)
        if outputs[0].numel() > FORMED:
            return self._function_of_hessian(outputs, targets, signs, lambda values: values.clamp_min(0).sqrt())
        s = self.hessian_factor(outputs, targets)
        return (s @ signs.reshape(len(s), -1, 1)).view(outputs.shape)

    def probe(self, outputs: Tensor, targets: Tensor) -> list[Tensor]:
        """Return values, gradients and second derivatives along fixed vectors.

        They change with the code that the function imports, which the digest of its own file misses.
        """
        along = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs)
        product = self._product(outputs, targets, along)
        return [self.values(outputs, targets), self.gradient(outputs, targets), product]

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor | None:
        """Return whether each prediction is right if the targets are class ids, else None."""
        if targets.is_floating_point() or targets.dim() != 1 or outputs.dim() != 2 or outputs.shape[1] == 1:
            return None
        return outputs.argmax(-1) == targets

    def _sample_loss(self, output: Tensor, target: Tensor) -> Tensor:
        value = self.function(output.unsqueeze(0), target.unsqueeze(0))
        if not isinstance(value, Tensor):
            raise TypeError(f"it returned {type(value).__name__}, not a tensor")
        return value.sum()

    def _product(self, outputs: Tensor, targets: Tensor, moved: Tensor) -> Tensor:
        """Return Hv of each sample, as the function has it: where it is not convex, v'Hv may be negative."""
        try:
            product: Tensor = jvp(lambda z: vmap(grad(self._sample_loss))(z, targets), (outputs,), (moved,))[1]
            return product
        except Exception:  # an operator without a forward derivative; or the function does not work under vmap
            return self._by_sample(self._reverse_product, outputs, targets, moved)

    def _reverse_product(self, output: Tensor, target: Tensor, along: Tensor) -> Tensor:
        product: Tensor = grad(lambda z: (grad(self._sample_loss)(z, target) * along).sum())(output)
        return product

    def _by_sample(self, function: Callable[..., Tensor], outputs: Tensor, targets: Tensor, *more: Tensor) -> Tensor:
        """Return what ``function`` returns for each sample, stacked.

        Raises UsageError, with the class and the first line of whatever the user's code raised.
        """
        arguments = (outputs, targets, *more)
        try:
            values: Tensor = vmap(function)(*arguments)
            return values
        except Exception:  # the user's code may not work under vmap; alone it shows what is wrong with it
            try:
                return torch.stack([function(*one) for one in zip(*arguments, strict=True)])
            except PruneTaylorError:
                raise
            except Exception as error:
                raise UsageError(
                    f"loss={self.name} fails on outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}: "
                    f"{type(error).__name__}: {first_line(error)}",
                    "it must take torch tensors (outputs, targets), of one sample too, and return a value for each "
                    "sample, or their mean, that torch can differentiate twice",
                ) from error

    def _function_of_hessian(
        self, outputs: Tensor, targets: Tensor, start: Tensor, function: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return f(H) v of each sample, v = ``start``; ``function`` maps eigenvalues."""
        v = start.flatten(1)
        length = v.norm(dim=1, keepdim=True)
        basis = [v / length.clamp_min(torch.finfo(v.dtype).tiny)]
        diagonal: list[Tensor] = []
        beside: list[Tensor] = []
        for _ in range(min(LANCZOS_STEPS, v.shape[1])):
            direction = self._product(outputs, targets, basis[-1].view(outputs.shape)).flatten(1)
            diagonal.append((basis[-1] * direction).sum(1))
            for _ in range(2):  # twice is enough (Giraud et al. 2005)
                for one in basis:
                    direction = direction - (one * direction).sum(1, keepdim=True) * one
            size = direction.norm(dim=1, keepdim=True)
            scale = torch.stack(diagonal).abs().amax(0).unsqueeze(1)
            ended = size <= 10 * torch.finfo(v.dtype).eps * v.shape[1] ** 0.5 * scale  # the space is invariant
            beside.append(torch.where(ended, 0, size).squeeze(1))
            basis.append(torch.where(ended, 0, direction / size.clamp_min(torch.finfo(v.dtype).tiny)))
        steps = len(diagonal)
        t = torch.diag_embed(torch.stack(diagonal, 1))
        if steps > 1:
            off = torch.stack(beside[: steps - 1], 1)
            t = t + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
        values, vectors = torch.linalg.eigh(t)
        weights = (vectors * function(values).unsqueeze(1) @ vectors[:, 0].unsqueeze(2)).squeeze(2) * length
        return torch.einsum("bs,sbk->bk", weights, torch.stack(basis[:steps])).view(outputs.shape)
