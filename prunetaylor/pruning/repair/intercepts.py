"""What can take up a shift of a layer's output: its own bias, or the batch norm that reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunetaylor.data.samples import Batches
from prunetaylor.network.layer import Layer, Prunable
from prunetaylor.network.state import evaluating
from prunetaylor.taylor.objective import outputs_of

LEAST_ROUNDING = 0.01
"""Of the outputs: what changes less is taken for rounding, that of TF32 among it; a shift that gets through is no less
than what the network itself computes."""


@dataclass(frozen=True)
class Intercept:
    """The tensor that an intercept goes into: ``key`` is its name in the state, ``sign`` how it enters.

    A bias b gives y = W x + b; a batch norm subtracts its running mean, so the intercept enters with a minus.
    """

    key: str
    sign: int


def find_intercepts(module: nn.Module, layers: list[Layer], batches: Batches) -> dict[str, Intercept]:
    """Absorbers by layer name; a layer without one has no entry.

    A batch norm belongs to a layer when its input *is* that layer's output, seen in one forward pass: no naming
    convention is relied on. It must read nothing else, the layer must be called once, and no second batch norm may read
    it: one running mean could not speak for both. A bias must be a parameter, and no other module's.

    Whether nothing else reads what would be shifted, as a skip connection does, is tried: constants added to a layer's
    outputs and taken off again by the intercept must leave the network's outputs as they are.
    """
    readers, sizes = _batch_norm_readers(module, layers, batches)
    used = Counter(id(p) for m in module.modules() for p in m.parameters(recurse=False))
    found = {
        layer.name: Intercept(f"{layer.name}.bias" if layer.name else "bias", 1)
        for layer in layers
        if len(layer.modules) == 1 and layer.name in sizes and used[id(layer.module._parameters.get("bias"))] == 1
    }
    for norm, layer in readers.items():
        found.setdefault(layer, Intercept(f"{norm}.running_mean", -1))
    trial = _Trial(module, layers, batches, sizes)
    if trial.unchanged(found):
        return found
    return {name: intercept for name, intercept in found.items() if trial.unchanged({name: intercept})}


class _Trial:
    """Shifts of layers' outputs, each with its intercept moved against it, on two samples.

    ``sizes``: the root mean square of each layer's outputs, by name. Their shifts are as large: far above rounding.
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[Layer], batches: Batches, sizes: Mapping[str, float]
    ) -> None:
        self.module, self.layers = module, {layer.name: layer for layer in layers}
        self.state = module.state_dict()
        generator = torch.Generator().manual_seed(0)
        self.shifts = {
            layer.name: sizes[layer.name] * torch.randn(_channels(layer.module), generator=generator)
            for layer in layers
            if layer.name in sizes
        }
        self.x = next(iter(batches))[0][:2]
        self.outputs = self._outputs()
        precision = max(torch.finfo(t.dtype).eps for t in self.state.values() if t.is_floating_point())
        self.rounding = max(LEAST_ROUNDING, (10 * precision) ** 0.5) * float(self.outputs.abs().max())

    def unchanged(self, intercepts: Mapping[str, Intercept]) -> bool:
        """Whether the network's outputs are the same, up to rounding, with all of these layers' outputs shifted."""
        before = {name: self.state[intercept.key].clone() for name, intercept in intercepts.items()}
        handles = [self.layers[name].module.register_forward_hook(_shifting(self.shifts[name])) for name in intercepts]
        try:
            with torch.no_grad():
                for name, intercept in intercepts.items():
                    into = self.state[intercept.key]
                    into.sub_(intercept.sign * self.shifts[name].to(into))
            return bool(((self._outputs() - self.outputs).abs() <= self.rounding).all())
        finally:
            for handle in handles:
                handle.remove()
            with torch.no_grad():
                for name, intercept in intercepts.items():
                    self.state[intercept.key].copy_(before[name])

    def _outputs(self) -> Tensor:
        with evaluating(self.module), torch.no_grad():
            return outputs_of(self.module(self.x)).float()


def _channels(module: Prunable) -> int:
    return module.out_features if isinstance(module, nn.Linear) else module.out_channels


def _shifting(shift: Tensor) -> Callable[[nn.Module, object, Tensor], Tensor]:
    def hook(m: nn.Module, _: object, y: Tensor) -> Tensor:
        return y + shift.to(y).view(-1, *[1] * (0 if isinstance(m, nn.Linear) else y.dim() - 2))

    return hook


def _batch_norm_readers(
    module: nn.Module, layers: list[Layer], batches: Batches
) -> tuple[dict[str, str], dict[str, float]]:
    """Layer name by batch-norm name, and the root mean square of each layer's outputs by its name."""
    owner = {m: layer.name for layer in layers for m in layer.modules}
    # By id, beside the version that an activation in place would raise; kept alive, so that the id stays its own.
    made: dict[int, tuple[Tensor, int, str]] = {}
    calls: dict[str, int] = {}
    sizes: dict[str, float] = {}
    readers: dict[str, set[str | None]] = {}
    handles = []

    def produced(m: nn.Module, _: object, y: Tensor) -> None:
        calls[owner[m]] = calls.get(owner[m], 0) + 1  # type: ignore[index]  # only the layers' modules are hooked
        sizes[owner[m]] = float(y.float().square().mean().sqrt())  # type: ignore[index]
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
    found = {
        norm: layer
        for norm, sources in readers.items()
        for layer in sources
        if layer is not None and len(sources) == 1 and read_by[layer] == 1 and calls[layer] == 1
    }
    return found, sizes
