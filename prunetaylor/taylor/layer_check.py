"""Check how a network uses its layers: in which order they run, and whether the error depends on them.

Every fit assumes that a layer is y = W x + b (``network/layer.py``), and that the error depends on W through y alone. A
weight may be used otherwise too, be reached by no sample, or feed an output that the error ignores. Such a layer is
skipped, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.data.samples import Batches, Inputs
from prunetaylor.network.layer import Call, Layer
from prunetaylor.network.network import Network
from prunetaylor.network.state import evaluating, trainable
from prunetaylor.taylor.curvature.tape import are_close, reads_sample_by_sample, recording, summed_gradients
from prunetaylor.taylor.passes import Watch, compute_outputs, first_batch, forward_all

UNREACHED = "no calibration sample is multiplied by its weight"
USED_ELSEWHERE = "the error depends on its weight in other ways than through products with inputs"
SAMPLES_MIXED = "layers mix the samples of a batch: gradients of single samples are computed one sample at a time"
NO_GRADIENT = "the error does not depend on it: it feeds another output, or is detached from the gradient"


@dataclass
class LayerReport:
    """The names of the layers that can be fitted, in running order, and the reasons why the others cannot."""

    order: list[str]
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def check_layers(network: Network, batches: Batches, *, fitted: bool) -> LayerReport:
    """Check the layers; without a criterion that is ``fitted`` to them they only have to run."""
    seen = _forward(network, batches)
    why = {layer.name: UNREACHED for layer in network.layers if layer.name not in seen.layers}
    notes = []
    if fitted:
        for x, names in seen.batches:
            some = [layer for layer in network.layers if layer.name in names and layer.name not in why]
            why |= _backward(network.module, some, x)
        fittable = [layer for layer in network.layers if layer.name not in why]
        if fittable and not reads_sample_by_sample(network.module, fittable, first_batch(batches)[0]):
            notes.append(SAMPLES_MIXED)
    # Every criterion's removals are predicted by gradients: without any there is nothing to predict.
    elif seen.batches and not any(_depends(network, x) for x, _ in seen.batches):
        why |= {layer.name: NO_GRADIENT for layer in network.layers if layer.name in seen.layers}
    if seen.others > 0:
        which = "the first, or logits or out if one has that name"
        notes.append(f"the network returns {seen.others + 1} tensors; the error is computed from {which}")
    return LayerReport([name for name in seen.layers if name not in why], why, notes)


def unreached(network: Network, batches: Batches) -> list[str]:
    """Return the names of the layers that no sample reaches."""
    seen = _forward(network, batches)
    return [layer.name for layer in network.layers if layer.name not in seen.layers]


@dataclass
class _Seen:
    layers: dict[str, None] = field(default_factory=dict)  # their names, as they run
    batches: list[tuple[Inputs, set[str]]] = field(default_factory=list)  # with the layers that each was first to reach
    others: int = 0  # tensors that the network returned beside its outputs


def _forward(network: Network, batches: Batches) -> _Seen:
    """Pass one batch; more batches follow only until every layer has been reached."""
    seen = _Seen()

    def add(start: int, samples: int, call: Call) -> None:
        seen.layers[call.layer.name] = None

    def whole(start: int, samples: int, x: Tensor, y: Any) -> None:
        seen.others = _tensors(y) - 1

    watch = Watch(network.layers, add, {network.module: whole})
    with closing(forward_all(network.module, batches, watch)) as each:
        for batch in each:
            if new := seen.layers.keys() - set().union(*(names for _, names in seen.batches)):
                seen.batches.append((batch.x, new))
            if len(seen.layers) == len(network.layers):
                break
    return seen


def _tensors(result: Any) -> int:
    """Return the number of tensors that a network returned."""
    if isinstance(result, Tensor):
        return 1
    parts = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple | list) else ()
    return sum(isinstance(part, Tensor) for part in parts)


def _depends(network: Network, x: Inputs) -> bool:
    """Return True if the outputs have a gradient in any of the weights."""
    with evaluating(network.module), trainable([layer.weight for layer in network.layers]), torch.enable_grad():
        return compute_outputs(network.module, x).requires_grad


def _backward(module: nn.Module, layers: list[Layer], x: Inputs) -> dict[str, str]:
    """Return the reason for each layer whose gradient is missing or not the one that its calls explain."""
    if not layers:
        return {}
    weights = [layer.weight for layer in layers]
    why: dict[str, str] = {}
    with evaluating(module), trainable(weights), torch.enable_grad(), recording(layers) as tape:
        outputs = compute_outputs(module, x).float()
        vector = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(0)).to(outputs.device)
        if not outputs.requires_grad:
            return {layer.name: NO_GRADIENT for layer in layers}
        total = (outputs * vector).sum()
        by_call = torch.autograd.grad(total, tape.outputs(), allow_unused=True, retain_graph=True)
        own = dict(summed_gradients(tape, by_call))
        by_weight = torch.autograd.grad(total, weights, allow_unused=True)
    for layer, whole in zip(layers, by_weight, strict=True):
        if whole is None:
            why[layer.name] = NO_GRADIENT
        elif layer not in own or not are_close(layer.matrix(whole).float(), own[layer]):
            why[layer.name] = USED_ELSEWHERE
    return why
