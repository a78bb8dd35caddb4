"""Ranking: exactly so many groups go, the lowest scores first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError


def keep_best(scores: Sequence[Tensor], gone: Sequence[Tensor], removed: int, names: Sequence[str]) -> list[Tensor]:
    """Masks (N_l,), True = keep, with exactly ``removed`` False in all.

    ``scores`` (N_l,) by layer; ``gone`` (N_l,) marks what has been removed before, which stays removed. Ties are broken
    by position. Every layer keeps its best group while that leaves enough others to remove, so that no layer is cut
    through by rounding. NumericsError, naming the layer, where a score that counts is not finite.
    """
    for name, score, lost in zip(names, scores, gone, strict=True):
        if not bool(torch.isfinite(score[~lost]).all()):
            raise NumericsError(f"{name}: its scores are not finite", "raise prune.damping or calibration.samples")
    device = scores[0].device
    flat = torch.cat([s.double() if s.device.type != "mps" else s for s in scores]).to(device)
    lost = torch.cat(list(gone)).to(device)
    already = int(lost.sum())
    if removed < already:
        raise ValueError(f"{already} groups are gone, {removed} were asked for")
    last = _best_of_each(scores, gone)
    rank = torch.where(lost, torch.zeros_like(flat, dtype=torch.int8), torch.ones_like(flat, dtype=torch.int8))
    if removed <= flat.numel() - len(last):
        rank[last.to(device)] = 2
    # Two stable sorts order by (rank, score, position).
    by_score = torch.argsort(flat.masked_fill(lost, -1), stable=True)
    order = by_score[torch.argsort(rank[by_score], stable=True)]
    keep = torch.ones_like(lost)
    keep[order[:removed]] = False
    return list(torch.split(keep, [s.numel() for s in scores]))


def _best_of_each(scores: Sequence[Tensor], gone: Sequence[Tensor]) -> Tensor:
    """Positions, in the concatenation, of the best group left in each layer that has one left."""
    best, offset = [], 0
    for score, lost in zip(scores, gone, strict=True):
        if not bool(lost.all()):
            left = score.masked_fill(lost, float("-inf"))
            best.append(offset + int((left == left.max()).nonzero()[-1]))  # of equals the one that would go last
        offset += score.numel()
    return torch.tensor(best, dtype=torch.long)
