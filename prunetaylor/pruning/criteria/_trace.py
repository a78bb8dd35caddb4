"""Greedy removal of one weight at a time, many rows at once: the loop of Optimal Brain Compression's Algorithm 1.

For a row w with Gram matrix H, and while it has a weight left: take the one with the least  w_p^2 / [H^-1]_pp,  move
the others by  -w_p [H^-1]_:p / [H^-1]_pp,  and take p out of H^-1:

    H^-1  <-  H^-1 - u u',     u = [H^-1]_:p / sqrt([H^-1]_pp)

(Frantar & Alistarh 2022, eq. 3 and Lemma 1). The rank-one updates are put off and applied STEPS at a time as a matrix
product, and the matrices shrink as weights go. Shapes: R rows, K columns (padded), B steps put off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.core.pass_progress import report_part
from prunetaylor.taylor.curvature.solve import Note, cholesky, kept_columns, row_batches

STEPS = 32
"""Rank-one updates that are put off: enough for a matrix product to pay, few enough for one column to stay cheap."""
SHRINK = 0.8
"""Matrices are copied into smaller ones when no row has more than this share of their columns left."""


def greedy_traces(h: Tensor, w: Tensor, mask: Tensor, damping: float, name: str, note: Note) -> tuple[Tensor, Tensor]:
    """Return the order in which each row's weights are removed, and what each removal adds to the row's error.

    Args:
        h: (C, C), the rows' common Gram matrix, damped as in ``curvature.solve``.
        w: (R, C), in the type of ``h``; zero where not kept.
        mask: (R, C), the weights that are not removed yet.

    Returns:
        order (R, C), long: 0 for the first to go; -1 where not kept.
        added (R, C): the increase of  d'Hd  by that removal; 0 where not kept.

    Raises:
        NumericsError: no damping makes ``h`` positive definite; it names the layer.
    """
    order = torch.full(mask.shape, -1, dtype=torch.long, device=h.device)
    added = torch.zeros(mask.shape, dtype=h.dtype, device=h.device)
    finished = 0
    for rows in row_batches(mask):
        columns, valid = kept_columns(mask[rows])
        inverse, floor = _inverses(h, mask[rows], damping, name, note)
        part_order, part_added = _remove_all(inverse, floor, w[rows].gather(1, columns), valid)
        order[rows] = order[rows].scatter(1, columns, torch.where(valid, part_order, -1))
        added[rows] = added[rows].scatter(1, columns, torch.where(valid, part_added, 0))
        finished += len(rows)
        report_part(finished, len(mask))
    return order, added


def _inverses(h: Tensor, mask: Tensor, damping: float, name: str, note: Note) -> tuple[Tensor, Tensor]:
    """Return inverses (R, K, K) of damped ``h`` on each row's kept columns, and 1 / its diagonal (R, K).

    The diagonal of the inverse falls to the latter, whatever else is removed. Rows that keep the same columns share
    one factorisation.
    """
    distinct, which = torch.unique(mask, dim=0, return_inverse=True)
    factor = cholesky(h, distinct, damping, name, note)
    return torch.cholesky_inverse(factor).index_select(0, which), (1 / factor.square().sum(2)).index_select(0, which)


def _remove_all(inverse: Tensor, floor: Tensor, w: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return (order, added) of :func:`greedy_traces` for inverses (R, K, K), which are overwritten."""
    rows = len(w)
    order, added = torch.full_like(present, -1, dtype=torch.long), torch.zeros_like(w)
    place = torch.arange(w.shape[1], device=w.device).expand(rows, -1)  # of each column among the columns at first
    present, diagonal = present.clone(), inverse.diagonal(dim1=-2, dim2=-1).clone()
    removed, remaining = 0, int(present.sum(1).max())
    while remaining > 0:
        steps = min(STEPS, remaining)
        put_off = w.new_zeros(rows, steps, w.shape[1])
        for step in range(steps):
            chosen, cost = _remove_one(inverse, put_off[:, : step + 1], w, present, diagonal, floor)
            at = place.gather(1, chosen)
            going = torch.isfinite(cost)
            order.scatter_(1, at, torch.where(going, removed + step, order.gather(1, at)))
            added.scatter_(1, at, torch.where(going, cost, added.gather(1, at)))
        removed, remaining = removed + steps, remaining - steps
        if 0 < remaining <= SHRINK * w.shape[1]:
            stay = torch.argsort((~present).to(torch.uint8), dim=1, stable=True)[:, :remaining]
            # Rows twice, with a transposition between: rows are copied whole, columns would be entry by entry.
            inverse = _some_rows(_some_rows(inverse, stay).mT.contiguous(), stay)
            put_off = put_off.gather(2, stay.unsqueeze(1).expand(-1, steps, -1))
            w, present, place, diagonal, floor = (t.gather(1, stay) for t in (w, present, place, diagonal, floor))
        if remaining > 0:
            inverse.baddbmm_(put_off.mT, put_off, alpha=-1)
    return order, added


def _remove_one(
    inverse: Tensor, put_off: Tensor, w: Tensor, present: Tensor, diagonal: Tensor, floor: Tensor
) -> tuple[Tensor, Tensor]:
    """Remove one weight of each row in place; return its column (R, 1) and cost (R, 1), inf for a row without weights.

    ``put_off`` (R, B, K) holds the updates since ``inverse`` was last brought up to date; its last is this one's.
    """
    costs = (w.square() / diagonal).masked_fill_(~present, float("inf"))
    cost, chosen = costs.min(1, keepdim=True)
    column = _some_rows(inverse, chosen)
    before = put_off[:, :-1]
    weights = before.gather(2, chosen.unsqueeze(2).expand(-1, before.shape[1], -1))
    column = torch.baddbmm(column, weights.mT, before, alpha=-1).squeeze(1)
    going = torch.isfinite(cost)
    pivot = diagonal.gather(1, chosen)
    u = torch.where(going, column / pivot.sqrt(), 0)
    put_off[:, -1] = u
    w -= u * (w.gather(1, chosen) / pivot.sqrt())
    w.scatter_(1, chosen, 0)
    torch.maximum(diagonal - u.square(), floor, out=diagonal)
    present.scatter_(1, chosen, False)
    return chosen, cost


def _some_rows(matrices: Tensor, which: Tensor) -> Tensor:
    """Return the rows ``which`` (R, L) of each of the contiguous matrices (R, J, K), as (R, L, K)."""
    first = torch.arange(len(matrices), device=matrices.device).unsqueeze(1) * matrices.shape[1]
    return matrices.flatten(0, 1).index_select(0, (first + which).flatten()).view(*which.shape, -1)
