"""Single weights: every group is one weight."""

from __future__ import annotations

from torch import Tensor

from prunetaylor.network.layer import Layer


def groups(layer: Layer, scores: Tensor) -> Tensor:
    """Scores of the layer's groups (N,), from those of its weights (the weight's shape)."""
    return scores.flatten()


def mask(layer: Layer, keep: Tensor) -> Tensor:
    """The mask (the weight's shape, True = keep) that keeps the groups ``keep`` (N,) says."""
    return keep.view(layer.weight.shape)
