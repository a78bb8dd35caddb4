"""What can take up a shift of a layer's output: its own bias, or the batch norm that reads it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunetaylor.data.samples import Batches
from prunetaylor.network.layer import Layer
from prunetaylor.network.state import evaluating
from prunetaylor.objective import outputs_of


@dataclass(frozen=True)
class Absorber:
    """The tensor that an intercept goes into: ``key`` is its name in the state, ``sign`` how it enters.

    A bias b gives y = W x + b; a batch norm subtracts its running mean, so the intercept enters with a minus.
    """

    key: str
    sign: int


def find_absorbers(module: nn.Module, layers: list[Layer], batches: Batches) -> dict[str, Absorber]:
    """Absorbers by layer name; a layer without one has no entry.

    A batch norm belongs to a layer when its input *is* that layer's output, seen in one forward pass: no naming
    convention is relied on. It must read nothing else, the layer must be called once, and no second batch norm may read
    it: one running mean could not speak for both.
    """
    found = {
        layer.name: Absorber(f"{layer.name}.bias" if layer.name else "bias", 1)
        for layer in layers
        if len(layer.modules) == 1 and layer.module.bias is not None
    }
    for norm, layer in _batch_norm_readers(module, layers, batches).items():
        found.setdefault(layer, Absorber(f"{norm}.running_mean", -1))
    return found


def _batch_norm_readers(module: nn.Module, layers: list[Layer], batches: Batches) -> dict[str, str]:
    """Layer name by batch-norm name."""
    owner = {m: layer.name for layer in layers for m in layer.modules}
    # By id, beside the version that an activation in place would raise; kept alive, so that the id stays its own.
    made: dict[int, tuple[Tensor, int, str]] = {}
    calls: dict[str, int] = {}
    readers: dict[str, set[str | None]] = {}
    handles = []

    def produced(m: nn.Module, _: object, y: Tensor) -> None:
        calls[owner[m]] = calls.get(owner[m], 0) + 1  # type: ignore[index]  # only the layers' modules are hooked
        if y.dim() == 2 or not isinstance(m, nn.Linear):  # a norm's channels are dimension 1
            made[id(y)] = (y, y._version, owner[m])  # type: ignore[index]

    for m in owner:
        handles.append(m.register_forward_hook(produced))
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None:

            def read(_: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                y, version, layer = made.get(id(inputs[0]), (None, 0, None))
                unchanged = y is not None and y._version == version
                readers.setdefault(name, set()).add(layer if unchanged else None)

            handles.append(norm.register_forward_pre_hook(read))
    x, _ = next(iter(batches))
    try:
        with evaluating(module), torch.no_grad():
            outputs_of(module(x[:2]))
    finally:
        for handle in handles:
            handle.remove()
    read_by = Counter(layer for sources in readers.values() for layer in sources)
    return {
        norm: layer
        for norm, sources in readers.items()
        for layer in sources
        if layer is not None and len(sources) == 1 and read_by[layer] == 1 and calls[layer] == 1
    }
