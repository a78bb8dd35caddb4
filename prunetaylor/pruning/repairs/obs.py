"""The kept weights of one layer move to make up for the removed ones, all at once, from its Gram matrix alone.

    d_R = -w_R,        d_K = H_KK^-1 H_KR w_R                 R: what a row loses,  K: what it keeps

the minimum of d'Hd given all of R (Hassibi & Stork 1992, eq. 5, for a set of weights). A row that loses fewer weights
than it keeps is solved from the other side, by block inversion:

    d = -H^-1_.R (H^-1_RR)^-1 w_R

Unlike ``least_squares`` it looks at no data: it is right for a layer whose inputs are still those that the Gram matrix
was fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prunetaylor.network.layer import Layer
from prunetaylor.pruning.interfaces import Repair, RepairContext
from prunetaylor.pruning.masks import apply_masks
from prunetaylor.taylor.curvature.gram import Moments
from prunetaylor.taylor.curvature.solve import (
    BLOCK,
    Note,
    cholesky,
    kept_columns,
    restricted_least_squares,
    row_batches,
)
from prunetaylor.taylor.sizes import Phase, Sizes, largest_of, solving_bytes


class OBSUpdate(Repair):
    """The update of Optimal Brain Surgeon, for all weights that a row loses at once."""

    summary = "the OBS update: each layer from its Gram matrix alone, fitted before the removal"
    at = "removal"
    uses_damping = True
    needs_moments = True
    follows_solvers = False

    @torch.no_grad()
    def apply(self, context: RepairContext) -> Iterator[str]:
        """Solve each layer from its weights in ``context.before``."""
        module, masks = context.network.module, context.masks
        layers = [layer for layer in context.network.layers if layer.name not in context.repaired]
        state = module.state_dict()
        for layer in layers:
            layer.weight.copy_(context.before[layer.parameter])
        for layer in layers:
            intercept, mask = context.intercepts.get(layer.name), layer.matrix(masks[layer.parameter])
            moments, damping, note = context.moments[layer.name], context.damping, context.note
            moved, means = compensate(layer, moments, mask, intercept is not None, damping, note)
            layer.weight.add_(layer.tensor(moved).to(layer.weight))
            if intercept is not None and means is not None:
                target = state[intercept.key]
                target.sub_(intercept.sign * means.flatten().to(target))
            yield layer.name
        apply_masks(module, masks)

    def memory(self, sizes: Sizes) -> list[Phase]:
        """Return the memory of the layer that takes the most: its Gram matrix, inverse and factor, and the systems of
        its rows."""
        systems, layer = largest_of(
            sizes.layers, lambda layer: 3 * sizes.wide * layer.columns**2 + solving_bytes(layer, sizes.wide)
        )
        return [Phase("a step", {"systems": systems}, layer)]


@torch.no_grad()
def compensate(
    layer: Layer, moments: Moments, mask: Tensor, absorbed: bool, damping: float, note: Note
) -> tuple[Tensor, Tensor | None]:
    """Return the displacement of the weights (G, R, C), and the move of the outputs' means by it (G, R).

    ``mask`` is (G, R, C), True = keep. With ``absorbed`` an intercept takes up the move of the means, so that only the
    variation of the outputs is compensated for; otherwise the second value is None.
    """
    h = (moments.centred() if absorbed else moments.plain())[0]
    w = layer.matrix(layer.weight.detach()).to(h.dtype)
    moved = torch.stack([_moved(h[g], w[g], mask[g], damping, layer.name, note) for g in range(layer.groups)])
    return moved, (moved @ moments.xx[..., -1, :-1].unsqueeze(2)).squeeze(2) if absorbed else None


def _moved(h: Tensor, w: Tensor, mask: Tensor, damping: float, name: str, note: Note) -> Tensor:
    """Return d (R, C) for rows ``w`` (R, C) and H (C, C)."""
    out = -w * ~mask
    lost = (~mask).sum(1)
    few = lost < mask.sum(1).clamp_max(BLOCK)
    if bool((~few).any()):
        rows = w[~few]
        out[~few] = restricted_least_squares(h, rows @ h, rows, mask[~few], damping, name, note) - rows
    # With the weights that go now in the part of the ones that were kept; rows that lose none stay as they are.
    some = (few & (lost > 0)).nonzero().squeeze(1)
    if len(some):
        inverse = torch.cholesky_inverse(cholesky(h, torch.ones_like(mask[:1]), damping, name, note)[0])
        for rows in row_batches(~mask[some]):
            at = some[rows]
            columns, valid = kept_columns(~mask[at])
            factor = cholesky(inverse, ~mask[at], 0.0, name, note)
            pull = torch.cholesky_solve((w[at].gather(1, columns) * valid).unsqueeze(2), factor).squeeze(2)
            spread = torch.zeros_like(w[at]).scatter(1, columns, pull * valid)
            out[at] = torch.where(mask[at], -(spread @ inverse), out[at])
    return out
