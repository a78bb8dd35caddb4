"""Selection: the groups that are cheapest in score per cost are removed until what remains fits a budget.

Removing a set R of groups increases the error by the sum of their scores s_i, and saves the sum of their costs c_i. For
a multiplier m >= 0 the set that minimises  sum_R s_i - m sum_R c_i  has every group with  s_i / c_i < m;  no set that
saves as much has a smaller sum of scores (Everett 1963, theorem 1). The multiplier of a budget is found by ordering the
groups by s_i / c_i and taking as many as needed. If all groups cost the same, this is a ranking by score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.pruning.interfaces import Groups, Masks


@dataclass(frozen=True)
class Budget:
    """A limit on what remains of a cost after a selection.

    Attributes:
        limit: in the unit of the cost.
        cost: its name in :class:`Groups`.
    """

    limit: float
    cost: str = "weights"


def select(groups: Sequence[Groups], budget: Budget) -> list[Tensor]:
    """Return which groups stay, (N,) True = keep for each of ``groups``, so that what remains is within the budget.

    Groups that are removed already stay removed. Ties are broken by position. One group of each of ``groups``, the most
    expensive to remove, stays if the budget can be met without it, so that no layer is emptied.

    Raises:
        NumericsError: a score that counts is not finite; it names the layer.
        ValueError: a cost is not positive, or the limit is negative.
    """
    if budget.limit < 0:
        raise ValueError(f"nothing can remain within {budget.limit:g} {budget.cost}")
    home = groups[0].scores.device
    device = torch.device("cpu") if home.type == "mps" else home  # MPS has no float64
    ratios = torch.cat([_score_per_cost(each, budget.cost, device) for each in groups])
    removed = torch.cat([each.removed for each in groups]).to(device)
    last = _last_of_each(groups, ratios, removed)
    # Two stable sorts order by (rank, score per cost, position).
    by_ratio = torch.argsort(ratios.masked_fill(removed, -1), stable=True)
    del ratios
    costs = torch.cat([each.costs[budget.cost].to(device).double() for each in groups]).masked_fill_(removed, 0)
    rank = (~removed).to(torch.int8)
    if float(costs[last].sum()) <= budget.limit:
        rank[last] = 2
    order = by_ratio[torch.argsort(rank[by_ratio], stable=True)]
    del by_ratio, rank
    saved = costs[order].cumsum(0)
    excess = float(saved[-1]) - budget.limit
    count = int(torch.searchsorted(saved, excess)) + 1 if excess > 0 else 0
    kept = ~removed
    kept[order[:count]] = False
    return [part.to(each.scores.device) for part, each in zip(_split(kept, groups), groups, strict=True)]


def masks_after(groups: Sequence[Groups], kept: Sequence[Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return ``masks`` without the weights of all groups that are not ``kept`` (N,).

    A weight that belongs to several groups stays only if all of them do.
    """
    after = dict(masks)
    for each, stays in zip(groups, kept, strict=True):
        for parameter, expand in each.members.items():
            after[parameter] = after[parameter] & expand(stays)
    return after


def _score_per_cost(groups: Groups, cost: str, device: torch.device) -> Tensor:
    scores, costs = groups.scores[~groups.removed], groups.costs[cost][~groups.removed]
    if not bool(torch.isfinite(scores).all()):
        raise NumericsError(f"{groups.name}: its scores are not finite", "raise prune.damping or calibration.samples")
    if not bool((costs > 0).all()):
        raise ValueError(f"{groups.name}: a cost in {cost} is not positive")
    return groups.scores.to(device).double() / groups.costs[cost].to(device)


def _last_of_each(groups: Sequence[Groups], ratios: Tensor, removed: Tensor) -> Tensor:
    """Return the position of the group of each of ``groups`` that is removed last, for those with any left."""
    last, offset = [], 0
    for ratio, gone in zip(_split(ratios, groups), _split(removed, groups), strict=True):
        if not bool(gone.all()):
            remaining = ratio.masked_fill(gone, float("-inf"))
            last.append(offset + int((remaining == remaining.max()).nonzero()[-1]))  # among equals the later one
        offset += ratio.numel()
    return torch.tensor(last, dtype=torch.long, device=ratios.device)


def _split(flat: Tensor, groups: Sequence[Groups]) -> tuple[Tensor, ...]:
    return torch.split(flat, [each.scores.numel() for each in groups])
