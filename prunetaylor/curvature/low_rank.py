"""The Fisher information of all weights together, without blocks, through the n x n products of its rows.

    (F + r I)^-1 = 1/r (I - G' (n r I + G G')^-1 G)              G: the rows (n, p) of all layers side by side

(Woodbury; Frantar, Kurtic & Alistarh 2021; Benbaki et al. 2023). n x p values are held, in float32; what
is done to them is done in the widest type, some columns at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from prunetaylor.curvature.block_fisher import relative_ridge
from prunetaylor.curvature.gram import accumulate_type
from prunetaylor.errors import NumericsError
from prunetaylor.memory import FLOAT, Sizes, chunks

_ELEMENTS = 1 << 22  # of columns at a time: 32 MiB in float64


def low_rank_bytes(sizes: Sizes) -> tuple[int, int]:
    """The rows of all layers with their products and factor, and what is done to them: some columns, vectors."""
    n, wide = sizes.samples, sizes.wide
    columns = max(n, _ELEMENTS // chunks().systems)
    return FLOAT * n * sizes.weights + 2 * wide * n * n, wide * (3 * columns + 4 * sizes.weights + 2 * n * n)


class LowRankFisher:
    """``rows`` (n, p_l) by parameter name; the ridge is ``damping`` x the mean diagonal over all weights.

    With ``keep`` (True = keep, in the weights' shapes or flat) F is restricted to the kept weights. Vectors go in and
    come out by parameter name; the shape of what comes out is that of what goes in, its type the widest.
    NumericsError where the products of the rows are not finite.
    """

    def __init__(self, rows: Mapping[str, Tensor], damping: float, keep: Mapping[str, Tensor] | None = None) -> None:
        first = next(iter(rows.values()))
        self.rows, self.keep, self.n = rows, keep, len(first)
        self.kind = accumulate_type(first.device)
        self.gram = torch.zeros(self.n, self.n, dtype=self.kind, device=first.device)
        squares = 0.0
        for name in rows:
            for columns, g in self._columns(name):
                self.gram += g @ g.mT
                squares += float(rows[name][:, columns].square().sum(dtype=self.kind))
        weights = sum(r.shape[1] for r in rows.values())
        self.ridge = relative_ridge(squares / (self.n * weights), damping, self.kind)
        eye = torch.eye(self.n, dtype=self.kind, device=first.device)
        self.factor, info = torch.linalg.cholesky_ex(self.gram + self.n * self.ridge * eye)
        if bool(info.any()) or not bool(torch.isfinite(self.factor).all()):
            raise NumericsError(
                f"the products of {self.n} gradients are not positive definite with damping {damping:g}",
                "raise prune.damping; where that does not help, check the samples and the weights",
            )

    def product(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """F v, without the ridge."""
        return self._back(vector, self._rows_times(vector) / self.n)

    def solve(self, vector: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """(F + r I)^-1 v on the kept weights, 0 elsewhere."""
        inner = torch.cholesky_solve(self._rows_times(vector).unsqueeze(1), self.factor).squeeze(1)
        taken = self._back(vector, inner)
        return {name: (self._kept(name, v.to(self.kind)) - taken[name]) / self.ridge for name, v in vector.items()}

    def inverse_diagonal(self) -> dict[str, Tensor]:
        """diag (F + r I)^-1 by parameter name, flat; 1 where not kept."""
        found = {}
        for name, rows in self.rows.items():
            diagonal = torch.ones(rows.shape[1], dtype=self.kind, device=rows.device)
            for columns, g in self._columns(name):
                z = torch.linalg.solve_triangular(self.factor, g, upper=False)
                # By rounding the difference may fall below what an inverse's diagonal cannot.
                least = 1 / (g.square().sum(0) / self.n + self.ridge)
                diagonal[columns] = torch.maximum((1 - z.square().sum(0)) / self.ridge, least)
            found[name] = diagonal if self.keep is None else torch.where(self.keep[name].flatten(), diagonal, 1)
        return found

    def _columns(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """Some columns of a layer's rows in the widest type, those of removed weights zero."""
        rows = self.rows[name]
        step = max(1, _ELEMENTS // chunks().systems // self.n)
        for low in range(0, rows.shape[1], step):
            columns = slice(low, min(rows.shape[1], low + step))
            g = rows[:, columns].to(self.kind)
            yield columns, g if self.keep is None else g * self.keep[name].flatten()[columns]

    def _rows_times(self, vector: Mapping[str, Tensor]) -> Tensor:
        """G v, (n,)."""
        total = torch.zeros(self.n, dtype=self.kind, device=self.gram.device)
        for name, v in vector.items():
            for columns, g in self._columns(name):
                total += g @ v.flatten()[columns].to(self.kind)
        return total

    def _back(self, like: Mapping[str, Tensor], inner: Tensor) -> dict[str, Tensor]:
        """G'u, in the shapes of ``like``."""
        found = {}
        for name, v in like.items():
            parts = [inner @ g for _, g in self._columns(name)]
            found[name] = torch.cat(parts).view(v.shape)
        return found

    def _kept(self, name: str, v: Tensor) -> Tensor:
        return v if self.keep is None else v * self.keep[name].view(v.shape)
