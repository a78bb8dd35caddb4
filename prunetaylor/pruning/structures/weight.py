"""Single weights: every group is one weight."""

from __future__ import annotations

from torch import Tensor

from prunetaylor.network.layer import Layer
from prunetaylor.pruning.interfaces import Structure


class Weight(Structure):
    summary = "single weights: every group is one weight"

    def groups(self, layer: Layer, scores: Tensor) -> Tensor:
        return scores.flatten()

    def mask(self, layer: Layer, keep: Tensor) -> Tensor:
        return keep.view(layer.weight.shape)
