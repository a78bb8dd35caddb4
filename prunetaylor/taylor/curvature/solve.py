"""Positive definite systems restricted to the weights that are kept, row by row.

Cholesky throughout: it is right for these matrices, fails loudly where they are not positive definite, and does not
meet the hang that batched LU has in some CPU builds of torch. Damping is a ridge relative to the mean diagonal; where
it is too little it is raised tenfold, and every raise is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.core.pass_progress import report_part
from prunetaylor.taylor.memory import LayerSize, current_chunks

BLOCK = 1024
"""Widest matrix that is factorised row by row. Of a wider one the inverse's diagonal is taken in blocks of columns
(reported); its least squares are solved by conjugate gradients."""

_BATCH_ELEMENTS = 1 << 25  # of one batch of row-wise matrices: 256 MiB in float64
_RAISES = 8

Note = Callable[[str], None]


def damped(h: Tensor, damping: float) -> Tensor:
    """``h`` (..., C, C) with a ridge of ``damping`` x its mean diagonal, at least a tiny absolute one for h = 0."""
    mean = h.diagonal(dim1=-2, dim2=-1).mean(-1)
    ridge = (damping * mean).clamp_min(torch.finfo(h.dtype).tiny ** 0.5)
    out = h.clone()
    out.diagonal(dim1=-2, dim2=-1).add_(ridge.unsqueeze(-1))
    return out


def cholesky(h: Tensor, keep: Tensor, damping: float, name: str, note: Note) -> Tensor:
    """Factors (R, K, K) of damped ``h`` (C, C) on each row's kept columns ``keep`` (R, C), in their order.

    K is the largest number of columns that a row keeps; rows that keep fewer are filled up with the identity. Raises
    NumericsError, naming the layer, where no damping up to 10^8 times the one asked for is enough.
    """
    _check_finite(h, name, "the Gram matrix of its inputs")
    columns, valid = kept_columns(keep)
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
    """The damping asked for, and what it is raised to where that is too little."""
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


def kept_columns(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's kept columns (R, K) in order, and which of the entries are (R, K) boolean; the rest are fillers."""
    most = max(1, int(keep.sum(1).max()))
    columns = torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)[:, :most]
    return columns, keep.gather(1, columns)


def _check_finite(values: Tensor, name: str, what: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NumericsError(f"{name}: {what} is not finite", "check the samples and the weights")


def row_batches(keep: Tensor) -> Iterator[Tensor]:
    """Indices of rows that are factorised together: rows that keep about as many columns, as many as fit a batch."""
    order = torch.argsort(keep.sum(1), stable=True)
    counts = keep.sum(1)[order].tolist()
    room = _BATCH_ELEMENTS // current_chunks().systems
    start = 0
    while start < len(order):
        # Rows come in rising order, so that the last of a batch says how wide its matrices are.
        end = start + 1
        while end < len(order) and (end - start + 1) * counts[end] ** 2 <= room:
            end += 1
        yield order[start:end]
        start = end


def systems_bytes(layer: LayerSize, wide: int, copies: float = 2.5) -> int:
    """What factorising a layer's systems takes, at most: of the rows that go together, none of which is pruned yet.

    The systems, their factors or inverses, and masks. A matrix wider than BLOCK is taken in blocks of columns.
    """
    width = -(-layer.columns // -(-layer.columns // BLOCK))
    together = min(layer.rows, max(1, _BATCH_ELEMENTS // current_chunks().systems // width**2))
    return int(wide * width**2 * (copies * together + 2)) + 3 * wide * layer.weights


def least_squares_bytes(layer: LayerSize, wide: int) -> int:
    """What :func:`restricted_least_squares` takes for a layer, at most; wide rows are solved all at once."""
    at_once = wide * (layer.columns**2 + 8 * layer.rows * layer.columns) if layer.columns > BLOCK else 0
    return max(at_once, systems_bytes(layer, wide))


def inverse_diagonal(h: Tensor, keep: Tensor, damping: float, name: str, note: Note) -> Tensor:
    """diag of the inverse of ``h`` (C, C) restricted to each row's kept columns, (R, C); 1 where not kept.

    Rows that keep the same columns share one factorisation. Where rows keep more than BLOCK columns, the matrix is
    taken as block diagonal, and ``note`` says so.
    """
    out = torch.ones(keep.shape, dtype=h.dtype, device=h.device)
    parts = -(-max(1, int(keep.sum(1).max())) // BLOCK)
    width = -(-h.shape[0] // parts)
    if parts > 1:
        note(
            f"{name}: its {h.shape[0]} inputs are taken in {parts} blocks; what joins one block to another is left out"
        )
    for start in range(0, h.shape[0], width):
        part = slice(start, min(h.shape[0], start + width))
        distinct, which = torch.unique(keep[:, part], dim=0, return_inverse=True)
        found = torch.ones(distinct.shape, dtype=h.dtype, device=h.device)
        for rows in row_batches(distinct):
            factor = cholesky(h[part, part], distinct[rows], damping, name, note)
            diagonal = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)
            columns, valid = kept_columns(distinct[rows])
            found[rows] = found[rows].scatter(1, columns, torch.where(valid, diagonal, torch.ones_like(diagonal)))
        out[:, part] = found[which]
    return out


def restricted_least_squares(
    h: Tensor, cross: Tensor, start: Tensor, keep: Tensor, damping: float, name: str, note: Note
) -> Tensor:
    """Rows (R, C) on ``keep`` that minimise  w'Hw - 2 c'w + ridge ||w - start||^2,  H (C, C), c = ``cross`` (R, C).

    The ridge pulls towards ``start``, not towards zero, so that directions without data stay where they were. Where
    rows keep up to BLOCK columns by Cholesky, row by row; wider ones by conjugate gradients on all rows at once.
    Either raises the damping where ``h`` is not positive definite with it.
    """
    _check_finite(h, name, "the Gram matrix of its inputs")
    _check_finite(cross, name, "the product of its inputs with the outputs it should have")
    masked = start * keep
    # With v = w - start on the kept columns:  (H + ridge) v = c - H start.
    right = (cross - masked @ h) * keep
    if int(keep.sum(1).max()) > BLOCK:
        return masked + _wide(h, right, keep, damping, name, note)
    step = torch.zeros_like(cross)
    solved_rows = 0
    for rows in row_batches(keep):
        factor = cholesky(h, keep[rows], damping, name, note)
        columns, valid = kept_columns(keep[rows])
        solved = torch.cholesky_solve((right[rows].gather(1, columns) * valid).unsqueeze(2), factor).squeeze(2)
        step[rows] = step[rows].scatter(1, columns, solved * valid)
        solved_rows += len(rows)
        report_part(solved_rows, len(keep))
    return masked + step


def _wide(h: Tensor, right: Tensor, keep: Tensor, damping: float, name: str, note: Note) -> Tensor:
    """By conjugate gradients, with the damping raised as in :func:`cholesky`."""
    for used in _raised(damping):
        found = conjugate_gradients(damped(h, used), right, keep, name, note)
        if found is not None:
            _report(damping, used, name, note)
            return found
    raise _hopeless(used, name)


def conjugate_gradients(
    h: Tensor,
    right: Tensor,
    keep: Tensor,
    name: str,
    note: Note,
    *,
    tolerance: float = 1e-4,
    limit: int = 300,
) -> Tensor | None:
    """Solve (H restricted to ``keep``) v = ``right`` for every row at once, (R, C); right is zero where not kept.

    Preconditioned by the diagonal (Hestenes & Stiefel 1952). Stops when every row's residual has fallen to
    ``tolerance`` of its right-hand side, or after ``limit`` steps, which ``note`` says: each step only improves the
    objective. None where H turns out not to be positive definite: the objective falls for ever along a direction, or a
    residual is larger in the end than the right-hand side.
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
        left = residual.norm(dim=1, keepdim=True)
        done = left <= tolerance * size
        if bool(done.all()):
            break
        if step == limit:
            worst = float(torch.where(size > 0, left / size, left).max())
            if not worst <= 1:  # nor where it is not finite
                return None
            note(f"{name}: its least squares stopped after {limit} steps, {worst:.1g} of a right-hand side left")
            break
        moved = (direction @ h) * keep
        curvature = (direction * moved).sum(1, keepdim=True)
        # Of rows that are done nothing but rounding is left.
        if bool((~done & (rho > 0) & (curvature <= 0)).any()):
            return None
        alpha = torch.where(curvature > 0, rho / curvature, torch.zeros_like(rho))
        solution += alpha * direction
        residual -= alpha * moved
        z = residual / scale
        fresh = (residual * z).sum(1, keepdim=True)
        direction = z + torch.where(rho > 0, fresh / rho, torch.zeros_like(rho)) * direction
        rho = fresh
    return solution
