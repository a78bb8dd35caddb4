"""The block-diagonal Fisher information of one layer, in blocks of its flattened weight, and its inverse.

    F_b = 1/n G'G + r I,        F_b^-1 = 1/r (I - G' (n r I + G G')^-1 G)         G: the rows (n, c) of one block

(Woodbury; Singh & Alistarh 2020, WoodFisher, who add one row at a time). Whichever system is smaller is factorised, n
rows or c weights, in the widest type. The ridge r is relative to the layer's mean diagonal, one for all its blocks: a
block that the samples hardly move is not moved far on account of noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.taylor.curvature.gram import accumulate_type
from prunetaylor.taylor.curvature.solve import Note
from prunetaylor.taylor.memory import chunk_size

_ELEMENTS = 1 << 24  # of the matrices that are factorised together: 128 MiB in float64
_RAISES = 8


def relative_ridge(mean_diagonal: float, damping: float, dtype: torch.dtype) -> float:
    """Return ``damping`` x the mean diagonal, at least a tiny number in case there is no curvature at all."""
    least: float = torch.finfo(dtype).tiny ** 0.5
    return max(damping * mean_diagonal, least)


class BlockFisher:
    """The Fisher information of the gradient ``rows`` (n, p) of a layer in blocks of ``size`` consecutive weights.

    The last block holds the remaining weights. Vectors (p,) are returned in the widest type. ``name`` is the layer's,
    for errors and notes.
    """

    def __init__(self, rows: Tensor, size: int, damping: float, name: str, note: Note) -> None:
        self.rows, self.size, self.damping, self.name, self.note = rows, size, damping, name, note
        self.dtype = accumulate_type(rows.device)
        norm = float(torch.linalg.vector_norm(rows, dtype=self.dtype))  # no copy of the rows, unlike their squares
        self.ridge = relative_ridge(norm**2 / rows.numel(), damping, self.dtype)

    def product(self, vector: Tensor) -> Tensor:
        """Return F v without the ridge, (p,)."""
        out = torch.zeros(vector.shape, dtype=self.dtype, device=vector.device)
        for part, g in self._blocks():
            v = vector[part].to(self.dtype).reshape(len(g), -1, 1)
            out[part] = (g.mT @ (g @ v)).flatten() / len(self.rows)
        return out

    def inverse(self, mask: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Return diag(F_KK^-1) and F_KK^-1 v_K, both (p,), with F_KK damped and restricted to the kept weights.

        ``mask`` (p,) is True for kept weights; for the others the diagonal is 1 and the solution 0.

        Raises NumericsError: no ridge up to 10^8 times the one asked for makes a block positive definite.
        """
        diagonal = torch.ones(mask.shape, dtype=self.dtype, device=mask.device)
        solution = torch.zeros_like(diagonal)
        for part, g in self._blocks():
            kept = mask[part].reshape(len(g), 1, -1)
            v = vector[part].to(self.dtype).reshape(len(g), -1, 1) * kept.mT
            inverse, solved = self._invert(g * kept, v)
            diagonal[part] = torch.where(kept.squeeze(1), inverse, 1).flatten()
            solution[part] = (solved * kept.mT).flatten()
        return diagonal, solution

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the place of some blocks in the flattened weight, and their rows (blocks, n, c) in the widest type."""
        n, p = self.rows.shape
        size = min(self.size, p)
        some = max(1, chunk_size("systems", _ELEMENTS) // (n * size + min(n, size) ** 2))
        whole = p // size * size
        edges = [*range(0, whole, some * size), whole]
        parts = [(low, high, size) for low, high in pairwise(edges)]
        if whole < p:
            parts.append((whole, p, p - whole))
        for low, high, width in parts:
            g = self.rows[:, low:high].to(self.dtype).reshape(n, -1, width)
            yield slice(low, high), g.transpose(0, 1)

    def _invert(self, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return diag of the inverses (blocks, c), and the inverses times v (blocks, c, 1), of rows (blocks, n, c)."""
        n, c = g.shape[1:]
        if c <= n:
            factor, _ = self._factor(g.mT @ g / n, 1.0)
            return torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2), torch.cholesky_solve(v, factor)
        factor, ridge = self._factor(g @ g.mT, n)
        z = torch.linalg.solve_triangular(factor, g, upper=False)
        # By rounding the difference may fall below what an inverse's diagonal cannot: the inverse of the diagonal.
        least = 1 / (g.square().sum(1) / n + ridge)
        diagonal = torch.maximum((1 - z.square().sum(1)) / ridge, least)
        return diagonal, (v - z.mT @ (z @ v)) / ridge

    def _factor(self, matrices: Tensor, times: float) -> tuple[Tensor, float]:
        """Return the Cholesky factors of (blocks, m, m) plus ``times`` the ridge on the diagonal, and that ridge."""
        ridge = self.ridge
        eye = torch.eye(matrices.shape[1], dtype=matrices.dtype, device=matrices.device)
        for _ in range(_RAISES + 1):
            factor, info = torch.linalg.cholesky_ex(matrices + times * ridge * eye)
            if not bool(info.any()):
                if ridge != self.ridge:
                    factor_used = self.damping * ridge / self.ridge
                    self.note(f"{self.name}: damping raised from {self.damping:g} to {factor_used:g} for its Fisher")
                return factor, ridge
            ridge *= 10
        raise NumericsError(
            f"{self.name}: its Fisher information is not positive definite even with a ridge of {ridge / 10:g}",
            "raise prune.damping or calibration.samples",
        )
