"""Optimal Brain Surgeon on blocks of the Fisher information (Singh & Alistarh 2020, WoodFisher).

    s_j = t_j^2 / (2 [F^-1]_jj)                F: of one block, damped and restricted to the weights that are kept

t is the weight; where the first-order term is kept, where Newton's step would take it, t = w - e F^-1 g (WoodTaylor,
there too, with e = 1; here e is where the whole network's model of held-out samples has its minimum along the steps of
all blocks). Once the weights R that go are chosen, the rest K of each block moves to the minimum of the quadratic model
given all of them at once, where the paper adds up the moves for one at a time:

    d_R = -w_R,        d_K = F_KK^-1 (F_KR w_R - e g_K)

The Fisher information is that of labels which the network draws itself: the empirical one is nearly empty where the
network fits its samples. Blocks of BLOCK consecutive entries of one layer's flattened weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.layer import Layer
from prunetaylor.pruning.criteria._newton import newton_share
from prunetaylor.pruning.interfaces import ScoringContext, Solver, Step
from prunetaylor.pruning.selection.budget import Budget, masks_after, select
from prunetaylor.pruning.structures.weight import Weight
from prunetaylor.taylor.curvature.block_fisher import BlockFisher
from prunetaylor.taylor.model import TaylorModel

BLOCK = 256
"""Weights in a block."""


class BlockFisherOBS(Solver):
    """Optimal Brain Surgeon with the inverse Fisher information of blocks of weights, as score and as solver."""

    summary = "Optimal Brain Surgeon on blocks of 256 weights of the Fisher information (WoodFisher)"
    cost = "one gradient per calibration sample; time grows with samples x weights"
    use = "comparisons with WoodFisher; convolutions whose weights depend on one another across rows"
    uses_gradient = True
    uses_damping = True
    max_stage_fraction = 0.35

    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        return _scores(context.model, context.masks)[0]

    def solve(self, context: ScoringContext, removed: int) -> Step:
        model, network = context.model, context.network
        scores, share = _scores(model, context.masks)
        groups = Weight().groups(context, scores)
        masks = masks_after(groups, select(groups, Budget(network.prunable - removed)), context.masks)
        displacement = {}
        for layer, rows in model.fisher_rows:
            fisher, stays = _fisher(model, layer, rows), masks[layer.parameter].flatten()
            g = _gradient(model, layer).to(fisher.dtype)
            gone = layer.weight.detach().flatten().to(fisher.dtype) * ~stays
            move = fisher.inverse(stays, fisher.product(gone) - share * g)[1] - gone
            if not bool(torch.isfinite(move).all()):
                raise NumericsError(f"{layer.name}: the move of its kept weights is not finite", "raise prune.damping")
            displacement[layer.parameter] = move.view(layer.weight.shape)
        return Step(masks, displacement)


def _scores(model: TaylorModel, masks: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], float]:
    """Return s in the weights' shapes, and e."""
    diagonals, steps, has_curvature = {}, {}, False
    for layer, rows in model.fisher_rows:
        has_curvature = has_curvature or bool(rows.any())
        fisher, shape = _fisher(model, layer, rows), layer.weight.shape
        diagonal, newton = fisher.inverse(masks[layer.parameter].flatten(), _gradient(model, layer))
        diagonals[layer.parameter], steps[layer.parameter] = diagonal.view(shape), -newton.view(shape)
    if not has_curvature:
        model.nothing_to_choose_by()
    share = newton_share(model, steps) if model.keep_first else 0.0
    scores = {}
    for layer in model.network.layers:
        target = layer.weight.detach() + share * steps[layer.parameter]
        scores[layer.parameter] = target.square() / (2 * diagonals[layer.parameter])
    return scores, share


def _fisher(model: TaylorModel, layer: Layer, rows: Tensor) -> BlockFisher:
    return BlockFisher(rows, BLOCK, model.damping, layer.name, model.note)


def _gradient(model: TaylorModel, layer: Layer) -> Tensor:
    """Return g, flat; zero without the first-order term."""
    if not model.keep_first:
        return torch.zeros_like(layer.weight).detach().flatten()
    return model.gradient[layer.parameter].flatten()
