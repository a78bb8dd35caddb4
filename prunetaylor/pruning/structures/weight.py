"""Single weights: every group is one weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunetaylor.network.layer import Layer
from prunetaylor.pruning.interfaces import Groups, ScoringContext, Structure


class Weight(Structure):
    """Each weight is a group of its own, with a cost of one weight."""

    summary = "single weights: every group is one weight"

    def groups(self, context: ScoringContext, scores: Mapping[str, Tensor]) -> list[Groups]:
        return [
            _weights(layer, context.masks[layer.parameter], scores[layer.parameter]) for layer in context.network.layers
        ]


def _weights(layer: Layer, mask: Tensor, scores: Tensor) -> Groups:
    shape = layer.weight.shape
    return Groups(
        name=layer.name,
        scores=scores.flatten(),
        removed=~mask.flatten(),
        costs={"weights": torch.ones((), device=scores.device).expand(scores.numel())},
        members={layer.parameter: lambda kept: kept.view(shape)},
    )
