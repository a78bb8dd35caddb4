"""ExactOBS: Optimal Brain Surgeon one weight at a time (Frantar & Alistarh 2022, Algorithm 1).

Each row of each layer is emptied greedily, its inverse Gram matrix being brought up to date after every removal:

    e_j = w_j^2 / [H^-1]_jj                    w, H^-1: of the row as the removals before have left it

Two weights that make up for one another are cheap one by one and dear together: OBS removes both. Across rows and
layers the next weight is the one that is cheapest now, in the unit u of ``_units.py`` (their Algorithm 2, over all
layers at once). As a row's later removals cannot come before its earlier ones, weight j is ranked by

    s_j = u max e_i                            over the row's removals i up to j

Moving the kept weights to make up for all that went is the repair's, as for OBS.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunetaylor.network.layer import Layer
from prunetaylor.pruning.criteria._trace import greedy_traces
from prunetaylor.pruning.criteria._units import ranking_unit
from prunetaylor.pruning.interfaces import Criterion, ScoringContext
from prunetaylor.taylor.curvature.solve import BLOCK
from prunetaylor.taylor.model import TaylorModel

APART = 1000
"""Columns whose products take as long as all else that a removal does: 32 ns for each C^2 of a row on one core."""


class ExactOBS(Criterion):
    """ExactOBS empties each row greedily, and updates its inverse Gram matrix after each removal."""

    summary = (
        "Optimal Brain Surgeon one weight at a time: the rest of a row is updated after each removal, so weights "
        "that can replace one another are not all removed"
    )
    cost = (
        "one pass over the calibration samples, then about rows x columns^3 operations per layer: the slowest; a "
        "ResNet-20 takes under a minute on two cores"
    )
    use = "the default with data, where it takes minutes at most: the most accurate one-shot method in our benchmarks"
    default_repair = "least-squares"
    uses_damping = True
    # Twice OBS's: each score counts the earlier removals in its row, so that it stays right for longer.
    max_stage_fraction = 0.7

    def score(self, context: ScoringContext) -> dict[str, Tensor]:
        """Return s_j. Equal scores of a row are told apart by a rounding error, in the order of removal.

        A row that keeps more than 1024 columns is scored in blocks of columns.
        """
        model = context.model

        def score_layer(layer: Layer) -> Tensor:
            order, added = _traces(model, layer, layer.matrix(context.masks[layer.parameter]))
            turn = 1 + 4 * torch.finfo(added.dtype).eps * order.to(added.dtype)
            return layer.tensor(ranking_unit(model, layer) * added * turn)

        return model.layer_scores(score_layer)

    def work(self, layers: Sequence[Layer]) -> float:
        """Return about how many operations the first stage's traces take: C^2 (C + APART) for a row of C columns."""
        total = 0.0
        for layer in layers:
            groups, rows, columns = layer.matrix(torch.empty(layer.weight.shape, device="meta")).shape
            blocks = -(-columns // BLOCK)
            total += groups * rows * columns * (columns / blocks) * (columns / blocks + APART)
        return total


def _traces(model: TaylorModel, layer: Layer, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the step at which each weight (G, R, C) is removed in its row, and the largest added error up to then."""
    h = model.gram(layer)
    w = layer.matrix(layer.weight.detach()).to(h.dtype) * mask
    order, added = torch.zeros_like(mask, dtype=torch.long), torch.zeros_like(w)
    parts = -(-max(1, int(mask.sum(2).max())) // BLOCK)
    if parts > 1:
        model.note(f"{layer.name}: weights chosen in {parts} blocks of columns, as rows keep more than {BLOCK}")
    width = -(-h.shape[1] // parts)
    for g in range(layer.groups):
        for start in range(0, h.shape[1], width):
            part = slice(start, min(h.shape[1], start + width))
            order[g, :, part], cost = greedy_traces(
                h[g, part, part], w[g, :, part], mask[g, :, part], model.damping, layer.name, model.note
            )
            added[g, :, part] = _largest_before(order[g, :, part], cost)
    return order, added


def _largest_before(order: Tensor, added: Tensor) -> Tensor:
    """Return, for each weight (R, C), the largest of ``added`` among the removals of its row up to its own."""
    sequence = torch.argsort(order, dim=1, stable=True)
    return torch.empty_like(added).scatter_(1, sequence, added.gather(1, sequence).cummax(1).values)
