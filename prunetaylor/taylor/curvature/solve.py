"""Solve positive definite systems restricted to the weights that are kept, row by row.

Cholesky factorisation is used throughout: it suits these matrices, fails loudly if they are not positive definite, and
does not hang as batched LU does in some CPU builds of torch. Damping is a ridge relative to the mean diagonal; if it is
too small it is raised tenfold, and every raise is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.core.pass_progress import report_part
from prunetaylor.taylor.memory import chunk_size

BLOCK = 1024
"""The widest matrix that is factorised row by row. The inverse's diagonal of a wider one is taken in blocks of columns
(reported); its least squares are solved by conjugate gradients."""

BATCH_ELEMENTS = 1 << 25  # of one batch of row-wise matrices: 256 MiB in float64
_RAISES = 8

Note = Callable[[str], None]


def damped(h: Tensor, damping: float) -> Tensor:
    """Return ``h`` (..., C, C) plus a ridge of ``damping`` x its mean diagonal, at least a tiny one for h = 0."""
    mean = h.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = (damping * mean).clamp_min(torch.finfo(h.dtype).tiny ** 0.5)
    out = h.clone()
    out.diagonal(dim1=-2, dim2=-1).add_(ridge.unsqueeze(-1))
    return out


def cholesky(h: Tensor, mask: Tensor, damping: float, name: str, note: Note) -> Tensor:
    """Return the factors (R, K, K) of damped ``h`` (C, C) on each row's kept columns, in their order.

    ``mask`` (R, C) is True where a row keeps a column; K is the largest number of columns that a row keeps, and rows
    that keep fewer are padded with the identity. ``name`` is the layer's.

    Raises NumericsError: no damping up to 10^8 times the one asked for is enough.
    """
    _check_finite(h, name, "the Gram matrix of its inputs")
    columns, valid = kept_columns(mask)
    filler = (~valid).to(h.dtype)
    pair = valid.unsqueeze(2) & valid.unsqueeze(1)
    for used in _raised(damping):
        restricted = damped(h, used)[columns.unsqueeze(2), columns.unsqueeze(1)]
        restricted.masked_fill_(~pair, 0).diagonal(dim1=-2, dim2=-1).add_(filler)
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(restricted)
        if not bool(info.any()):
            _report(damping, used, name, note)
            return factor
    raise _hopeless(used, name)


def _raised(damping: float) -> Iterator[float]:
    """Yield the damping asked for, and then the values that it is raised to."""
    used = damping
    for _ in range(_RAISES + 1):
        yield used
        used *= 10


def _report(damping: float, used: float, name: str, note: Note) -> None:
    if used != damping:
        note(f"{name}: damping raised from {damping:g} to {used:g} for a positive definite Gram matrix")


def _hopeless(used: float, name: str) -> NumericsError:
    return NumericsError(
        f"{name}: the Gram matrix is not positive definite even with damping {used:g}",
        "raise prune.damping or calibration.samples",
    )


def kept_columns(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return each row's kept columns (R, K) in order, and which entries are columns (R, K); the rest are padding."""
    width = max(1, int(mask.sum(1).max()))
    columns = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)[:, :width]
    return columns, mask.gather(1, columns)


def _check_finite(values: Tensor, name: str, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NumericsError(f"{name}: {what} is not finite", "check the samples and the weights")


def row_batches(mask: Tensor) -> Iterator[Tensor]:
    """Yield the indices of rows that are factorised together: as many rows of similar width as fit a batch."""
    order = torch.argsort(mask.sum(1), stable=True)
    counts = mask.sum(1)[order].tolist()
    room = chunk_size("systems", BATCH_ELEMENTS)
    start = 0
    while start < len(order):
        # Rows come in rising order, so that the last of a batch says how wide its matrices are.
        end = start + 1
        while end < len(order) and (end - start + 1) * counts[end] ** 2 <= room:
            end += 1
        yield order[start:end]
        start = end


def inverse_diagonal(h: Tensor, mask: Tensor, damping: float, name: str, note: Note) -> Tensor:
    """Return diag of the inverse of ``h`` (C, C) restricted to each row's kept columns, (R, C); 1 where not kept.

    Rows that keep the same columns share one factorisation. If rows keep more than BLOCK columns, the matrix is taken
    as block diagonal, which is noted.
    """
    out = torch.ones(mask.shape, dtype=h.dtype, device=h.device)
    parts = -(-max(1, int(mask.sum(1).max())) // BLOCK)
    width = -(-h.shape[0] // parts)
    if parts > 1:
        note(f"{name}: its {h.shape[0]} inputs are split into {parts} blocks; correlations between blocks are ignored")
    for start in range(0, h.shape[0], width):
        part = slice(start, min(h.shape[0], start + width))
        distinct, which = torch.unique(mask[:, part], dim=0, return_inverse=True)
        diagonals = torch.ones(distinct.shape, dtype=h.dtype, device=h.device)
        for rows in row_batches(distinct):
            factor = cholesky(h[part, part], distinct[rows], damping, name, note)
            diagonal = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
            columns, valid = kept_columns(distinct[rows])
            diagonal = torch.where(valid, diagonal, torch.ones_like(diagonal))
            diagonals[rows] = diagonals[rows].scatter(1, columns, diagonal)
        out[:, part] = diagonals[which]
    return out


def restricted_least_squares(
    h: Tensor, cross: Tensor, start: Tensor, mask: Tensor, damping: float, name: str, note: Note
) -> Tensor:
    """Return rows (R, C), zero outside ``mask``, that minimise  w'Hw - 2 c'w + ridge ||w - start||^2.

    H is ``h`` (C, C), c is ``cross`` (R, C). The ridge pulls towards ``start``, not towards zero, so that directions
    without data stay where they were. Rows that keep up to BLOCK columns are solved by Cholesky factorisation, row by
    row; wider ones by conjugate gradients on all rows at once. Either raises the damping until ``h`` is positive
    definite.
    """
    _check_finite(h, name, "the Gram matrix of its inputs")
    _check_finite(cross, name, "the product of its inputs with its target outputs")
    masked = start * mask
    # With v = w - start on the kept columns:  (H + ridge) v = c - H start.
    right = (cross - masked @ h) * mask
    if int(mask.sum(1).max()) > BLOCK:
        return masked + _wide(h, right, mask, damping, name, note)
    step = torch.zeros_like(cross)
    solved_rows = 0
    for rows in row_batches(mask):
        factor = cholesky(h, mask[rows], damping, name, note)
        columns, valid = kept_columns(mask[rows])
        solved = torch.cholesky_solve((right[rows].gather(1, columns) * valid).unsqueeze(2), factor).squeeze(2)
        step[rows] = step[rows].scatter(1, columns, solved * valid)
        solved_rows += len(rows)
        report_part(solved_rows, len(mask))
    return masked + step


def _wide(h: Tensor, right: Tensor, mask: Tensor, damping: float, name: str, note: Note) -> Tensor:
    """Solve by conjugate gradients, with the damping raised as in :func:`cholesky`."""
    for used in _raised(damping):
        solution = conjugate_gradients(damped(h, used), right, mask, name, note)
        if solution is not None:
            _report(damping, used, name, note)
            return solution
    raise _hopeless(used, name)


def conjugate_gradients(
    h: Tensor,
    right: Tensor,
    mask: Tensor,
    name: str,
    note: Note,
    *,
    tolerance: float = 1e-4,
    limit: int = 300,
) -> Tensor | None:
    """Solve (H restricted to ``mask``) v = ``right`` for every row at once, (R, C); right is zero where not kept.

    The diagonal is the preconditioner (Hestenes & Stiefel 1952). The iteration stops when every row's residual has
    fallen to ``tolerance`` of its right-hand side, or after ``limit`` steps, which is noted: each step only improves
    the objective. Returns None if H turns out not to be positive definite: the objective falls without end along a
    direction, or a residual is larger in the end than the right-hand side.
    """
    scale = h.diagonal().unsqueeze(0)
    if bool((scale <= 0).any()):
        return None
    solution = torch.zeros_like(right)
    residual = right.clone()
    z = residual / scale
    direction = z.clone()
    rho = (residual * z).sum(1, keepdim=True)
    size = right.norm(dim=1, keepdim=True)
    for step in range(limit + 1):
        error = residual.norm(dim=1, keepdim=True)
        converged = error <= tolerance * size
        if bool(converged.all()):
            break
        if step == limit:
            worst = float(torch.where(size > 0, error / size, error).max())
            if not worst <= 1:  # nor if it is not finite
                return None
            note(f"{name}: its least squares stopped after {limit} steps, with a relative residual of {worst:.1g}")
            break
        moved = (direction @ h) * mask
        curvature = (direction * moved).sum(1, keepdim=True)
        # The residuals of converged rows are mere rounding.
        if bool((~converged & (rho > 0) & (curvature <= 0)).any()):
            return None
        alpha = torch.where(curvature > 0, rho / curvature, torch.zeros_like(rho))
        solution += alpha * direction
        residual -= alpha * moved
        z = residual / scale
        fresh = (residual * z).sum(1, keepdim=True)
        direction = z + torch.where(rho > 0, fresh / rho, torch.zeros_like(rho)) * direction
        rho = fresh
    return solution
