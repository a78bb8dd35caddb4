"""Joint: the best k weights to keep for the quadratic model of the whole network, and where they move.

The problem that Yu et al. 2022 (CBS) and Benbaki et al. 2023 (CHITA) pose, solved by ``_subset.py``:

    minimise  Q(d) = t g'd + 1/2 d'(F + r I)d     with k of the weights w + d kept, the rest zero

F is the low-rank Fisher information of all prunable weights together, without blocks, of one gradient a sample for a
label that the network draws itself; r is the damping x its mean diagonal. A single weight's score is what its leaving
adds to the least Q, the others moving:

    s_j = q_j^2 / (2 [(F + r I)^-1]_jj)           q: the minimum of Q, from where no weight is gone

The first-order term, where it is kept, is g's part in the directions in which F has curvature, and t how far the
Taylor model of the whole network on held-out samples lets a Newton step go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.network import Network
from prunetaylor.pruning.criteria._newton import newton_share
from prunetaylor.pruning.criteria._quadratic import Quadratic
from prunetaylor.pruning.criteria._subset import best_subset
from prunetaylor.pruning.interfaces import ScoringContext, Solver, Step
from prunetaylor.taylor.curvature.block_fisher import relative_ridge
from prunetaylor.taylor.curvature.gram import accumulate_type
from prunetaylor.taylor.model import TaylorModel

_ELEMENTS = 1 << 27  # of gradient rows beside the model's own at one time: 512 MiB


class Joint(Solver):
    """One quadratic model of the whole network chooses the kept weights and moves them."""

    summary = (
        "one quadratic model of all layers together, whose best subset of weights is searched for (as in CBS and CHITA)"
    )
    cost = "one gradient per calibration sample, all of them in memory, then an iterative search"
    use = "research, on small networks: it is below obs and exact_obs in our benchmarks"
    default_repair = "least-squares"
    uses_gradient = True
    uses_damping = True
    max_stage_fraction = 0.35
    vectors = 20

    @torch.no_grad()
    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        """Return s_j, in units of the error."""
        quadratic = _fit(context.model, context.network, context.masks)
        size = quadratic.changes(quadratic.support(torch.ones_like(quadratic.w, dtype=torch.bool))).size
        return _by_parameter(context.network, context.masks, size)

    @torch.no_grad()
    def solve(self, context: ScoringContext, removed: int) -> Step:
        """Return the step after which ``removed`` weights are zero, those removed before included.

        A layer that would keep nothing keeps its largest weight, if enough other weights can be removed. It holds n x p
        values in float32, for n samples and the p weights that are not removed yet.
        """
        network, masks = context.network, context.masks
        quadratic = _fit(context.model, network, masks)
        weights = len(quadratic.w)
        remaining = network.prunable - removed
        if remaining > weights:
            raise ValueError(f"{network.prunable - weights} weights are gone, {removed} were asked for")
        kept, d = best_subset(quadratic, remaining)
        fixed = _largest_where_none_is_kept(network, masks, kept)
        # A layer that keeps nothing cuts the network through: once more, with one weight of it that stays.
        while 0 < int(fixed.sum()) <= remaining and not bool(kept[fixed].all()):
            kept, d = best_subset(quadratic, remaining, fixed)
            fixed = fixed | _largest_where_none_is_kept(network, masks, kept)
        if not bool(torch.isfinite(d).all()):
            raise NumericsError("the move of the kept weights is not finite", "raise prune.damping")
        moves = _by_parameter(network, masks, d)
        return Step(
            _by_parameter(network, masks, kept),
            {layer.parameter: moves[layer.parameter].to(layer.weight.dtype) for layer in network.layers},
        )


def _fit(model: TaylorModel, network: Network, masks: Mapping[str, Tensor]) -> Quadratic:
    """Return the model of the weights that are not removed, in the layers' order; it is reused for the same point
    and masks."""
    made, first, quadratic = model.made.get("joint", (None, None, None))
    if made is not masks or first != model.keep_first:
        quadratic = _quadratic(model, network, masks)
        model.made["joint"] = masks, model.keep_first, quadratic
    assert isinstance(quadratic, Quadratic)
    return quadratic


def _quadratic(model: TaylorModel, network: Network, masks: Mapping[str, Tensor]) -> Quadratic:
    kept = {layer.parameter: masks[layer.parameter].flatten() for layer in network.layers}
    w = torch.cat([layer.weight.detach().flatten()[kept[layer.parameter]] for layer in network.layers])
    x = w.new_empty(model.risk.batches.samples, len(w), dtype=torch.float32)
    start, squares = 0, 0.0
    with torch.enable_grad():
        for layer, rows in replace(model.fisher_rows, elements=_ELEMENTS):
            part = rows[:, kept[layer.parameter]]
            x[:, start : start + part.shape[1]] = part
            start += part.shape[1]
            squares += float(part.square().sum(0).sum(dtype=accumulate_type(w.device)))
    if squares == 0:
        model.nothing_to_choose_by()
    ridge = relative_ridge(squares / max(1, x.numel()), model.damping, x.dtype)
    quadratic = Quadratic(x, w, torch.zeros_like(w), ridge)
    if not model.keep_first:
        return quadratic
    # Outside the directions in which F is larger than the ridge, nothing would hold a step along g back.
    quadratic.set_gradient(quadratic.project(_gradient(model, network, masks)))
    newton = quadratic.best_point(quadratic.support(torch.ones_like(w, dtype=torch.bool)))
    share = newton_share(model, _by_parameter(network, masks, newton))
    quadratic.set_gradient(share * quadratic.gradient)
    return quadratic


def _gradient(model: TaylorModel, network: Network, masks: Mapping[str, Tensor]) -> Tensor:
    """Return g of the weights that are not removed, in the widest type; zero without the first-order term."""
    parts = []
    for layer in network.layers:
        kept = masks[layer.parameter]
        g = model.gradient[layer.parameter] if model.keep_first else torch.zeros_like(layer.weight)
        parts.append(g.detach()[kept])
    return torch.cat(parts).to(accumulate_type(parts[0].device))


def _largest_where_none_is_kept(network: Network, masks: Mapping[str, Tensor], kept: Tensor) -> Tensor:
    """Mark, among the weights that are not removed, the largest of each layer that keeps none."""
    marks, start = torch.zeros_like(kept), 0
    for layer in network.layers:
        sizes = layer.weight.detach()[masks[layer.parameter]].abs()
        if len(sizes) and not bool(kept[start : start + len(sizes)].any()):
            marks[start + int(sizes.argmax())] = True
        start += len(sizes)
    return marks


def _by_parameter(network: Network, masks: Mapping[str, Tensor], values: Tensor) -> dict[str, Tensor]:
    """Return values of the weights that are not removed in the weights' shapes; zero (False) for the others."""
    shaped, start = {}, 0
    for layer in network.layers:
        mask = masks[layer.parameter]
        count = int(mask.sum())
        shaped[layer.parameter] = values.new_zeros(mask.shape).masked_scatter_(mask, values[start : start + count])
        start += count
    return shaped
