"""ExactOBS: Optimal Brain Surgeon one weight at a time (Frantar & Alistarh 2022, Algorithm 1).

Each row of each layer is emptied greedily, its inverse Gram matrix being brought up to date after every removal:

    e_j = w_j^2 / [H^-1]_jj                    w, H^-1: of the row as the removals before have left it

Across rows and layers the next weight is the one that is cheapest now, in the unit u of ``_units.py`` (their Algorithm
2, over all layers at once). As a row's later removals cannot come before its earlier ones, weight j is ranked by

    s_j = u max e_i                            over the row's removals i up to j

The kept weights then become the best ones for what was chosen: OBS's update for all removals at once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.curvature.gradients import sensitivity_bytes
from prunetaylor.curvature.gram import centred_bytes, grams_bytes
from prunetaylor.curvature.solve import BLOCK, damped, least_squares_bytes, restricted_least_squares
from prunetaylor.curvature.taylor import TaylorModel
from prunetaylor.memory import LayerSize, Phase, Sizes, largest_of
from prunetaylor.network.layer import Layer
from prunetaylor.network.network import Network
from prunetaylor.saliency._trace import greedy_traces, traces_bytes
from prunetaylor.saliency._units import error_unit, ranking_unit
from prunetaylor.selection.rank import keep_best
from prunetaylor.selection.step import Step

NEEDS = "samples"
REPAIR = "least-squares"
STAGED = True


def memory(sizes: Sizes) -> list[Phase]:
    """Layer Grams and output sensitivities, then one layer's inverses, later its systems, beside them.

    Of every weight its step, score and place in the order of all.
    """
    grams, fitting = grams_bytes(sizes)
    sensitivity, batch = sensitivity_bytes(sizes)

    def need(layer: LayerSize) -> int:
        work = max(traces_bytes(layer, sizes.wide), least_squares_bytes(layer, sizes.wide))
        return centred_bytes(layer, sizes.wide) + work

    systems, layer = largest_of(sizes.layers, need)
    held = grams + sensitivity
    return [
        Phase("layer Grams", {"curvature": grams, "activations": fitting}),
        Phase("output sensitivities", {"curvature": held, "activations": batch}),
        Phase("traces", {"curvature": held, "systems": systems, "scores": 2 * sizes.wide * sizes.weights}, layer),
        Phase("order", {"curvature": held, "scores": 10 * sizes.wide * sizes.weights}),
    ]


def score(
    model: TaylorModel | None, network: Network, masks: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """s_j; where a row's are equal, :func:`solve` goes by their order."""
    assert model is not None
    _, scores = _scores(model, network, masks)
    return {layer.parameter: layer.tensor(s) for layer, s in zip(network.layers, scores, strict=True)}


@torch.no_grad()
def solve(
    model: TaylorModel | None,
    network: Network,
    masks: Mapping[str, Tensor],
    removed: int,
    generator: torch.Generator,
) -> Step:
    """The step after which ``removed`` weights are gone, those that ``masks`` (True = keep) has lost included.

    Its ``predicted_change`` is K-FAC's with the output factor's diagonal: a/2 d'Hd, summed over rows and layers.
    Columns beyond 1024 that a row keeps are taken in blocks when weights are chosen, together when the others move.
    """
    assert model is not None
    order, scores = _scores(model, network, masks)
    chosen = keep_best(
        _places([score.flatten() for score in scores], [steps.flatten() for steps in order]),
        [~layer.matrix(masks[layer.parameter]).flatten().cpu() for layer in network.layers],
        removed,
        [layer.name for layer in network.layers],
    )
    kept, displacement, change = {}, {}, 0.0
    for layer, mask in zip(network.layers, chosen, strict=True):
        keep = mask.to(layer.weight.device).view_as(layer.matrix(masks[layer.parameter]))
        moved, cost = _update(model, layer, keep)
        kept[layer.parameter] = layer.tensor(keep)
        displacement[layer.parameter] = layer.tensor(moved).to(layer.weight.dtype)
        change += cost
    return Step(kept, displacement, change)


def _scores(model: TaylorModel, network: Network, masks: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The step at which each weight goes in its row, and s_j, both (G, R, C) by layer."""
    order, scores = [], []
    for layer in network.layers:
        steps, added = _traces(model, layer, layer.matrix(masks[layer.parameter]))
        order.append(steps)
        scores.append(ranking_unit(model, layer) * added)
    return order, scores


def _traces(model: TaylorModel, layer: Layer, keep: Tensor) -> tuple[Tensor, Tensor]:
    """The step at which each weight (G, R, C) goes in its row, and the largest addition to the error up to then."""
    h, _ = model.moments[layer.name].centred()
    w = layer.matrix(layer.weight.detach()).to(h.dtype) * keep
    order, added = torch.zeros_like(keep, dtype=torch.long), torch.zeros_like(w)
    parts = -(-max(1, int(keep.sum(2).max())) // BLOCK)
    if parts > 1:
        model.note(f"{layer.name}: weights chosen in {parts} blocks of columns, as rows keep more than {BLOCK}")
    width = -(-h.shape[1] // parts)
    for g in range(layer.groups):
        for start in range(0, h.shape[1], width):
            part = slice(start, min(h.shape[1], start + width))
            order[g, :, part], cost = greedy_traces(
                h[g, part, part], w[g, :, part], keep[g, :, part], model.damping, layer.name, model.note
            )
            added[g, :, part] = _largest_before(order[g, :, part], cost)
    return order, added


def _largest_before(order: Tensor, added: Tensor) -> Tensor:
    """For each weight (R, C) the largest of ``added`` among the removals of its row up to its own."""
    sequence = torch.argsort(order, dim=1, stable=True)
    return torch.empty_like(added).scatter_(1, sequence, added.gather(1, sequence).cummax(1).values)


def _places(scores: list[Tensor], order: list[Tensor]) -> list[Tensor]:
    """Each weight's place (N_l,) when all are ordered by score and, among equals, by the step at which they go.

    Places rather than scores are what is ranked, so that of a row's equals none goes before its turn.
    """
    sizes = [len(score) for score in scores]
    every, steps = torch.cat([s.cpu() for s in scores]), torch.cat([o.cpu() for o in order])
    by_step = torch.argsort(steps, stable=True)
    sequence = by_step[torch.argsort(every[by_step], stable=True)]
    places = torch.empty(len(every), dtype=torch.float64)
    places[sequence] = torch.arange(len(every), dtype=torch.float64)
    places[~torch.isfinite(every)] = float("nan")  # refused, with the layer's name, where they count
    return list(torch.split(places, sizes))


def _update(model: TaylorModel, layer: Layer, keep: Tensor) -> tuple[Tensor, float]:
    """The move (G, R, C) to the best weights on ``keep`` for the layer's outputs now, and its predicted change."""
    h, _ = model.moments[layer.name].centred()
    w = layer.matrix(layer.weight.detach()).to(h.dtype)
    moved = torch.stack(
        [
            restricted_least_squares(h[g], w[g] @ h[g], w[g], keep[g], model.damping, layer.name, model.note)
            for g in range(layer.groups)
        ]
    ).sub_(w)
    added = ((moved @ damped(h, model.damping)) * moved).sum(2, keepdim=True)
    return moved, float((error_unit(model, layer) * added).sum())
