"""The rules of other methods, for comparisons: layer by layer, each at the same sparsity, nothing beyond the papers.

    magnitude   smallest |w| of the layer                                          Han et al. 2015
    wanda       smallest |w_ij| ||x_j|| of each row                                Sun et al. 2024, eq. 1
    sparsegpt   w^2 / [H^-1]_jj in blocks of 128 columns, the rest compensates     Frantar & Alistarh 2023, algorithm 1

Layers go in running order, and each sees the inputs that the layers pruned before it really give. A layer's matrix is
(outputs, inputs); a convolution's inputs are its unfolded patches. These rules know nothing of prunetaylor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Rule = Callable[[Tensor, Tensor, float], Tensor]
"""Takes W (R, C), H = sum of x x' (C, C) and the sparsity; returns the pruned W (R, C)."""
BLOCK = 128
DAMPING = 0.01
"""The ridge on H, relative to its mean diagonal, as in the published code."""


def magnitude(w: Tensor, h: Tensor, sparsity: float) -> Tensor:
    return w.masked_fill(_smallest(w.abs().flatten(), sparsity).view_as(w), 0)


def wanda(w: Tensor, h: Tensor, sparsity: float) -> Tensor:
    return w.masked_fill(_smallest(w.abs() * h.diagonal().sqrt(), sparsity), 0)


def sparsegpt(w: Tensor, h: Tensor, sparsity: float) -> Tensor:
    w, h = w.double().clone(), h.double().clone()
    dead = h.diagonal() == 0
    h.diagonal()[dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    # Rows of the upper factor of H^-1 are what remains of the inverse after the columns before them are fixed.
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for low in range(0, w.shape[1], BLOCK):
        high = min(low + BLOCK, w.shape[1])
        scores = (w[:, low:high] / upper.diagonal()[low:high]).square()
        removed = _smallest(scores.flatten(), sparsity).view_as(scores)
        errors = torch.zeros_like(scores)
        for j in range(low, high):
            errors[:, j - low] = torch.where(removed[:, j - low], w[:, j], 0) / upper[j, j]
            w[:, j:high] -= errors[:, j - low, None] * upper[j, j:high]
            w[:, j].masked_fill_(removed[:, j - low], 0)
        w[:, high:] -= errors @ upper[low:high, high:]
    return w


RULES: dict[str, Rule] = {"magnitude": magnitude, "wanda": wanda, "sparsegpt": sparsegpt}


def prune_by_rule(
    module: nn.Module,
    groups: Sequence[Sequence[nn.Module]],
    batches: Iterable[Any],
    run: Callable[[nn.Module, Any], object],
    rule: Rule,
    sparsity: float,
) -> None:
    """Prune ``module`` in place: the layers of a group together, on the inputs that the groups before it leave."""
    batches = list(batches)
    for layers in groups:
        moments = input_moments(module, layers, batches, run)
        for layer in layers:
            w = layer.weight
            turned = w.detach().T if _is_turned(layer) else w.detach().flatten(1)
            pruned = rule(turned, moments[layer].to(turned), sparsity).to(w.dtype)
            with torch.no_grad():
                w.copy_((pruned.T if _is_turned(layer) else pruned).reshape(w.shape))


@torch.no_grad()
def input_moments(
    module: nn.Module, layers: Sequence[nn.Module], batches: Iterable[Any], run: Callable[[nn.Module, Any], object]
) -> Mapping[nn.Module, Tensor]:
    """Return the sum of x x' (C, C) over the inputs x of each layer."""
    sums: dict[nn.Module, Tensor] = {}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], _: object) -> None:
        x = inputs[0]
        if isinstance(layer, nn.Conv2d):
            assert layer.groups == 1, "a grouped convolution has an H for each group"
            assert isinstance(layer.padding, tuple)
            x = functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
        rows = x.reshape(-1, x.shape[-1]).double()
        sums[layer] = sums.get(layer, 0) + rows.T @ rows

    handles = [layer.register_forward_hook(add) for layer in layers]
    for inputs in batches:
        run(module, inputs)
    for handle in handles:
        handle.remove()
    return sums


def _is_turned(layer: nn.Module) -> bool:
    """Return True for Hugging Face's Conv1D, whose weight is (inputs, outputs)."""
    return type(layer).__name__ == "Conv1D"


def _smallest(scores: Tensor, sparsity: float) -> Tensor:
    """Return True at the given share of the smallest scores along the last dimension."""
    count = round(scores.shape[-1] * sparsity)
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, scores.argsort(-1)[..., :count], True)
