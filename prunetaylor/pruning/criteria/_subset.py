"""The best k weights to keep for a quadratic model, and where they move: backward elimination, then exchanges.

1. Eliminate: from all weights, rounds of removing those that cost least while all the others move, each weight's cost
   being exact for its leaving alone.
2. Exchange: as many as pay of the cheapest that are kept for the best that are not, by a search over how many; only
   what lowers the model's exact least value is accepted.
3. Swap: among the cheapest kept and the best others, chains of single swaps, each the best by its exact change (all
   other weights moving), going on through worse ones and cut back to the best point (Kernighan & Lin 1970).

CHITA's steps (Benbaki et al. 2023) choose by projected gradients; CBS (Yu et al. 2022) swaps weights while all others
stay. Neither sees what moving the others makes of a removal, which is what is chosen by here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunetaylor.pruning.criteria._quadratic import Quadratic, Support

ROUND = 0.1
"""Share of the weights left that a round of elimination removes, at most."""
POOL = 256
"""Weights on either side that chains of swaps choose among."""
ROUNDS = 12
"""Of exchange or swaps, at most."""
PATIENCE = 24
"""Swaps in a row that a chain may take without a new best value."""
STARTS = 16
"""First swaps that are tried before a search among a pool ends."""
ENOUGH = 1e-3
"""Exchanges end when one gains less than this share of the value."""


def best_subset(model: Quadratic, count: int, fixed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the best mask (p,) of ``count`` weights and its displacement d (p,); weights in ``fixed`` (p,) stay."""
    stay = torch.zeros_like(model.w, dtype=torch.bool) if fixed is None else fixed
    support = eliminate(model, count, stay)
    if 0 < count < len(model.w):
        support = _improve(model, support, stay)
    support = model.support(support.kept)  # afresh, without the rounding of many small changes
    return support.kept, model.best_point(support)


def eliminate(model: Quadratic, count: int, fixed: Tensor) -> Support:
    """Remove in rounds the weights that cost least until ``count`` remain; ties are broken by position."""
    support = model.support(torch.ones_like(fixed))
    remaining = len(fixed)
    while remaining > count:
        going = min(remaining - count, max(1, int(ROUND * remaining)))
        cost = model.changes(support).size.masked_fill(~support.kept, torch.inf).masked_fill(fixed, torch.inf)
        support = model.changed(support, fixed[:0].nonzero(), torch.argsort(cost, stable=True)[:going])
        remaining -= going
    return support


def _improve(model: Quadratic, support: Support, fixed: Tensor) -> Support:
    value, many = model.best_value(support), True
    for _ in range(ROUNDS):
        before = value
        cheap, best, q = _candidates(model, support, fixed)
        if many:
            support, value = _exchange(model, support, value, cheap, best)
            many = before - value > ENOUGH * abs(value)
            if many:
                continue
        else:
            support, value = _swap(model, support, value, cheap[0][:POOL], best[0][:POOL], q)
            if not before - value > ENOUGH / 10 * abs(value):
                break
    return support


Sorted = tuple[Tensor, Tensor]
"""Indices of weights and what each changes Q by, the most promising first."""


def _candidates(model: Quadratic, support: Support, fixed: Tensor) -> tuple[Sorted, Sorted, Tensor]:
    """Return the kept weights, cheapest first, the others, best first, and the q of every weight."""
    changes = model.changes(support)
    kept = (support.kept & ~fixed).nonzero().squeeze(1)
    others = (~support.kept).nonzero().squeeze(1)
    kept = kept[torch.argsort(changes.size[kept], stable=True)]
    others = others[torch.argsort(changes.size[others], descending=True, stable=True)]
    return (kept, changes.size[kept]), (others, changes.size[others]), changes.q


def _exchange(model: Quadratic, support: Support, value: float, cheap: Sorted, best: Sorted) -> tuple[Support, float]:
    """Exchange the first m of each side; m is the number of pairs that gain singly, then half, a quarter ... of it."""
    most = min(len(cheap[0]), len(best[0]))
    size = int((cheap[1][:most] < best[1][:most]).sum())
    worse = 0
    lowest = support
    while size > 0 and worse < 3:
        candidate = model.changed(support, best[0][:size], cheap[0][:size])
        now = model.best_value(candidate)
        if now < value:
            lowest, value, worse = candidate, now, 0
        elif lowest is not support:
            worse += 1
        size //= 2
    return lowest, value


def _swap(
    model: Quadratic, support: Support, value: float, kept: Tensor, others: Tensor, q: Tensor
) -> tuple[Support, float]:
    """Follow chains of swaps within a pool of weights as long as they lower the value."""
    pool = torch.cat([kept, others])
    x = model.x.index_select(1, pool).to(model.dtype)
    g = x.mT @ torch.cholesky_solve(x, torch.linalg.cholesky(support.m))
    inside = support.kept[pool].clone()
    q = q[pool]
    first = 0
    while first < STARTS:
        gain, *point = _chain(g, q, inside, first)
        if gain > 1e-9 * abs(value) / model.ridge:
            (g, q, inside), first = point, 0
        else:
            first += 1
    candidate = model.changed(support, pool[inside & ~support.kept[pool]], pool[~inside & support.kept[pool]])
    now = model.best_value(candidate)
    return (candidate, now) if now < value else (support, value)


def _chain(g: Tensor, q: Tensor, inside: Tensor, first: int) -> tuple[float, Tensor, Tensor, Tensor]:
    """Follow a chain of swaps without moving a weight twice; return gain in Q/r, g, q and inside at its best point.

    It starts with the best swap but ``first``, each of another weight to be kept.

    g (m, m) = x_i'M^-1 x_j over the pool, q (m,) as in ``_quadratic``; both change by rank one with each move.
    """
    best = (0.0, g, q, inside)
    moved = torch.zeros_like(inside)
    gain, since = 0.0, 0
    while since < PATIENCE:
        kept, others = (inside & ~moved).nonzero().squeeze(1), (~inside & ~moved).nonzero().squeeze(1)
        if not (len(kept) and len(others)):
            break
        change, i, j = _best_pair(g, q, kept, others, 0 if moved.any() else min(first, len(others) - 1))
        gain -= change
        column = g[:, i] / (1 - g[i, i])
        q, g = q + column * q[i], torch.addr(g, column, g[i])
        column = g[:, j] / (1 + g[j, j])
        q, g = q - column * q[j], torch.addr(g, column, g[j], alpha=-1)
        inside = inside.clone()
        inside[i], inside[j] = False, True
        moved[i] = moved[j] = True
        since += 1
        if gain > best[0]:
            best, since = (gain, g, q, inside), 0
    return best


def _best_pair(g: Tensor, q: Tensor, kept: Tensor, others: Tensor, but: int) -> tuple[float, int, int]:
    """Return (change of Q/r, i, j) of the best swap of a kept weight i for another j but the ``but`` best of these."""
    diagonal = g.diagonal()
    rest = (1 - diagonal[kept]).unsqueeze(1)  # positive: the kept weights' x'M^-1 x are below one
    across = g[kept.unsqueeze(1), others]
    leaving = q[kept].unsqueeze(1)
    joined = (q[others] + across * leaving / rest).square() / (1 + diagonal[others] + across.square() / rest)
    change = 0.5 * (leaving.square() / rest - joined)
    least, which = change.min(0)
    at = int(torch.argsort(least, stable=True)[but])
    return float(least[at]), int(kept[which[at]]), int(others[at])
