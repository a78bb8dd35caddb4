"""Gradients of single samples, from each layer's inputs and output gradients, caught by hooks.

For y = W x at positions p the gradient of one sample is sum_p dy_p x_p', a matrix product. Nothing is written into the
user's ``p.grad``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from prunetaylor.errors import DataError
from prunetaylor.network.layer import Layer, Prunable, input_rows, output_rows, positions


@dataclass
class Call:
    """One use of a layer in one forward pass."""

    layer: Layer
    module: Prunable
    x: Tensor
    y: GradientEdge  # of the output as the layer gave it: an activation may overwrite the tensor


@dataclass
class Tape:
    calls: list[Call] = field(default_factory=list)

    def outputs(self) -> list[GradientEdge]:
        return [call.y for call in self.calls]


@contextmanager
def recording(layers: Sequence[Layer]) -> Iterator[Tape]:
    """Inputs and outputs of every call of the layers; clear ``calls`` before each pass."""
    tape = Tape()
    handles = []
    for layer in layers:
        for module in layer.modules:

            def hook(
                m: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], y: Tensor, layer: Layer = layer
            ) -> None:
                x = inputs[0] if inputs else named["input"]
                if y.requires_grad:  # a call without a graph has no part in any gradient
                    tape.calls.append(Call(layer, m, x.detach(), get_gradient_edge(y)))  # type: ignore[arg-type]

            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        yield tape
    finally:
        for handle in handles:
            handle.remove()


def layer_gradients(
    tape: Tape, grads: Sequence[Tensor | None], samples: int, elements: int
) -> Iterator[tuple[Layer, int, Tensor]]:
    """(layer, index of the first sample, gradients (G, B, R, C) of B samples in turn), from the outputs' ``grads``.

    The calls of one layer are summed. About ``elements`` values at a time, at least one sample.
    """
    by_layer: dict[str, list[tuple[Call, Tensor]]] = {}
    for call, g in zip(tape.calls, grads, strict=True):
        if g is not None:
            by_layer.setdefault(call.layer.parameter, []).append((call, g))
    for uses in by_layer.values():
        layer = uses[0][0].layer
        step = max(1, elements // max(layer.weight.numel(), *(_row_elements(c, g, samples) for c, g in uses)))
        for low in range(0, samples, step):
            high = min(samples, low + step)
            each = sum((_sample_gradients(c, g, low, high, samples) for c, g in uses), torch.zeros(()))
            yield layer, low, each


def _row_elements(call: Call, g: Tensor, samples: int) -> int:
    """Elements of one sample's unfolded input; DataError where the rows of the input are no sample's own."""
    entries = call.x.shape[0]
    if call.x.dim() == 1 or entries % samples:
        raise DataError(
            f"{call.layer.name}: an input of {entries} rows for {samples} samples cannot be told apart by sample",
            "leave it alone (prune.exclude), or choose a criterion that needs no gradients of single samples",
        )
    columns = call.layer.weight.numel() // g.shape[-1 if isinstance(call.module, nn.Linear) else 1]
    return entries // samples * positions(call.module, call.x, g) * columns * call.layer.groups


def _sample_gradients(call: Call, g: Tensor, low: int, high: int, samples: int) -> Tensor:
    """Gradients (G, B, R, C) of samples low..high for one call."""
    per = call.x.shape[0] // samples  # entries of the first dimension that belong to one sample
    x, y = call.x[low * per : high * per], g[low * per : high * per]
    each = positions(call.module, x, y)
    flat = torch.arange(x.shape[0] * each, device=x.device)
    entries, at = flat // each, flat % each
    rows = input_rows(call.module, x, entries, at, y.shape[2:])
    outs = output_rows(call.module, y, entries, at)
    shape = (rows.shape[0], high - low, -1)
    return torch.einsum(
        "gblr,gblc->gbrc", outs.reshape(*shape, outs.shape[2]).float(), rows.reshape(*shape, rows.shape[2]).float()
    )
