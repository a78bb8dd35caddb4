"""The quadratic model of all weights together, and its best point on a given support.

    Q(d) = g'd + 1/2 d'(F + r I)d,     F = 1/n sum_i a_i a_i'         a_i: one gradient a sample, r: the ridge

With x_i = a_i / sqrt(n r) as the rows of X, y = X w and c = w - g/r, the weights v = w + d have, up to a constant,

    Q / r = 1/2 |y - X v|^2 + 1/2 |v - c|^2

a ridge regression, so that everything about a support S (the weights that are kept, the others zero) is in the n x n
matrix  M = I + X_S X_S'  and in  z = y - X_S c_S  (Woodbury; Benbaki et al. 2023, sections 3.1 and 3.3):

    v_S = c_S + X_S' M^-1 z,           Q / r = 1/2 z'M^-1 z + 1/2 |c outside S|^2  - 1/2 |g/r|^2

and so is what any other weight joining, or any of them leaving, changes while all the others move (block inversion):

    q_j = c_j + x_j' M^-1 z,  h_j = x_j' M^-1 x_j:      leaving costs  r/2 q_j^2 / (1 - h_j)
                                                        joining gains  r/2 q_j^2 / (1 + h_j)

Shapes: n rows, p weights, m some of them. X stays in the type that it comes in; sums and n x n matrices are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.taylor.curvature.gram import accumulate_type
from prunetaylor.taylor.memory import chunk_size

_ELEMENTS = 1 << 22  # of X at a time: 32 MiB in float64


@dataclass(frozen=True)
class Support:
    """A set of kept weights, ``kept`` (p,), with its M (n, n) and z (n,)."""

    kept: Tensor
    m: Tensor
    z: Tensor


@dataclass(frozen=True)
class Changes:
    """For every weight (p,): q, h, and ``size`` >= 0, the change of Q if it leaves (kept) or joins (not kept)."""

    q: Tensor
    h: Tensor
    size: Tensor


class Quadratic:
    """The quadratic model Q. ``rows`` (n, p) are the samples' gradients, scaled in place; weights and gradient are
    (p,)."""

    def __init__(self, rows: Tensor, weights: Tensor, gradient: Tensor, ridge: float) -> None:
        self.dtype = accumulate_type(rows.device)
        self.x = rows.mul_((len(rows) * ridge) ** -0.5)
        self.ridge = ridge
        self.w = weights.to(self.dtype)
        self.set_gradient(gradient)
        self.squares = self._by_weight(lambda x: x.square().sum(0))
        if not bool(torch.isfinite(self.w).all() & torch.isfinite(self.squares).all()):
            raise NumericsError("the gradients of the samples are not finite", "check the samples and the weights")

    def set_gradient(self, gradient: Tensor) -> None:
        """Replace g (p,)."""
        self.gradient = gradient.to(self.dtype)
        self.pull = self.gradient / self.ridge
        self.c = self.w - self.pull

    def project(self, vector: Tensor) -> Tensor:
        """Return X'(I + XX')^-1 X v, the part of a vector (p,) along directions in which F is larger than the ridge."""
        everything = self.support(torch.ones_like(self.w, dtype=torch.bool))
        seen = self.times(vector).unsqueeze(1)
        return self.times_transposed(torch.cholesky_solve(seen, self._factor(everything)).squeeze(1))

    def value(self, d: Tensor) -> float:
        """Return Q(d)."""
        return self.ridge * float(self.pull @ d + 0.5 * self.times(d).square().sum() + 0.5 * d.square().sum())

    def slope(self, d: Tensor) -> Tensor:
        """Return dQ/dd (p,) at ``d``."""
        return self.ridge * (self.pull + self.times_transposed(self.times(d)) + d)

    def times(self, vector: Tensor) -> Tensor:
        """Return X v (n,)."""
        total = torch.zeros(len(self.x), dtype=self.dtype, device=self.x.device)
        for part, x in self.columns():
            total += x @ vector[part]
        return total

    def times_transposed(self, vector: Tensor) -> Tensor:
        """Return X'u (p,)."""
        return self._by_weight(lambda x: vector @ x)

    def support(self, kept: Tensor) -> Support:
        """Return the matrices of a support (p,), computed from all of its columns."""
        eye = torch.eye(len(self.x), dtype=self.dtype, device=self.x.device)
        empty = Support(torch.zeros_like(kept), eye, eye[0])
        all_of = self.changed(empty, kept.nonzero(), kept[:0].nonzero())
        # z = y - X_S c_S without the cancellation: exactly zero where all weights are kept and there is no gradient.
        return Support(kept, all_of.m, self.times(torch.where(kept, self.pull, self.w)))

    def changed(self, support: Support, joining: Tensor, leaving: Tensor) -> Support:
        """Return the support after some weights (indices) join and others leave."""
        kept, m, z = support.kept.clone(), support.m.clone(), support.z.clone()
        for sign, which in ((1, joining.flatten()), (-1, leaving.flatten())):
            kept[which] = sign > 0
            for some in torch.split(which, max(1, chunk_size("systems", _ELEMENTS) // len(self.x))):
                x = self.x.index_select(1, some).to(self.dtype)
                m.addmm_(x, x.mT, alpha=sign)
                z -= sign * (x @ self.c[some])
        return Support(kept, m, z)

    def best_value(self, support: Support) -> float:
        """Return the least Q with the weights outside the support at zero."""
        solved = torch.cholesky_solve(support.z.unsqueeze(1), self._factor(support)).squeeze(1)
        outside = self.c[~support.kept].square().sum() - self.pull.square().sum()
        return 0.5 * self.ridge * float(support.z @ solved + outside)

    def best_point(self, support: Support) -> Tensor:
        """Return the displacement d (p,) that reaches :meth:`best_value`."""
        solved = torch.cholesky_solve(support.z.unsqueeze(1), self._factor(support)).squeeze(1)
        return torch.where(support.kept, self.c + self.times_transposed(solved), 0) - self.w

    def changes(self, support: Support) -> Changes:
        """Return the exact change of the least Q if each weight alone changes sides; h has the precision of X."""
        factor = self._factor(support)
        solved = torch.cholesky_solve(support.z.unsqueeze(1), factor).squeeze(1)
        eye = torch.eye(len(factor), dtype=self.dtype, device=factor.device)
        # |whiten x|^2 = x'M^-1 x. As M >= I its norm is at most one: nothing is lost in the type of X.
        whiten = torch.linalg.solve_triangular(factor, eye, upper=False).to(self.x.dtype)
        q, h = torch.empty_like(self.c), torch.empty_like(self.c)
        for part, x in self.columns():
            q[part] = self.c[part] + solved @ x
            h[part] = (whiten @ self.x[:, part]).square().sum(0)
        # By rounding h may pass what it cannot: leaving adds at least as much as in a model of that weight alone.
        rest = torch.maximum(1 - h, 1 / (1 + self.squares))
        return Changes(q, h, 0.5 * self.ridge * q.square() / torch.where(support.kept, rest, 1 + h))

    def columns(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield some columns of X (n, m) at a time, in the widest type."""
        step = max(1, chunk_size("systems", _ELEMENTS) // len(self.x))
        for low in range(0, self.x.shape[1], step):
            part = slice(low, min(self.x.shape[1], low + step))
            yield part, self.x[:, part].to(self.dtype)

    def _by_weight(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        values = torch.empty_like(self.w)
        # Not a list of parts: small tensors that stay between large ones keep the allocator from reusing their room.
        for part, x in self.columns():
            values[part] = function(x)
        return values

    def _factor(self, support: Support) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(support.m)
        if bool(info.any()) or not bool(torch.isfinite(factor).all()):
            raise NumericsError(
                f"the products of {len(factor)} gradients are not positive definite", "raise prune.damping"
            )
        return torch.as_tensor(factor)
