"""Intercepts: the bias of a layer, or the batch norm that reads it, absorbs a shift of the layer's outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunetaylor.data.samples import Batches, Inputs
from prunetaylor.network.layer import Call, Layer
from prunetaylor.network.observation import observing
from prunetaylor.taylor.passes import InputHook, first_batch, forward_one, hooked

LEAST_ROUNDING = 0.01
"""A change below this share of the outputs is taken for rounding, also that of TF32; a shift that gets through is as
large as the outputs themselves."""


@dataclass(frozen=True)
class Intercept:
    """The tensor that holds an intercept: ``key`` is its name in the state, ``sign`` the sign with which it enters.

    A bias b gives y = W x + b; a batch norm subtracts its running mean, so the intercept enters with a minus.
    """

    key: str
    sign: int


def find_intercepts(module: nn.Module, layers: list[Layer], batches: Batches) -> dict[str, Intercept]:
    """Return the intercepts by layer name; a layer without one has no entry.

    A batch norm belongs to a layer when its input *is* that layer's output, seen in one forward pass: no naming
    convention is relied on. It must read nothing else, the layer must be called once, and no second batch norm may read
    it: one running mean could not speak for both. A bias must be a parameter, and no other layer's.

    Whether nothing else reads what would be shifted, as a skip connection does, is tried: constants added to a layer's
    outputs and taken off again by the intercept must leave the network's outputs as they are.
    """
    x = first_batch(batches)[0].rows(slice(2))
    readers, sizes, outputs = _batch_norm_readers(module, layers, x)
    intercepts = {
        layer.name: Intercept(layer.bias, 1) for layer in layers if layer.bias is not None and layer.name in sizes
    }
    for norm, layer in readers.items():
        intercepts.setdefault(layer, Intercept(f"{norm}.running_mean", -1))
    trial = _ShiftTrial(module, layers, x, outputs, sizes)
    if trial.unchanged(intercepts):
        return intercepts
    return {name: intercept for name, intercept in intercepts.items() if trial.unchanged({name: intercept})}


class _ShiftTrial:
    """A test on two samples that shifts layers' outputs and moves their intercepts against the shift.

    ``x``: the samples; ``outputs`` (2, K): the network's, as it is;
    ``sizes``: the root mean square of each layer's outputs, by name. Their shifts are as large: far above rounding.
    """

    def __init__(
        self, module: nn.Module, layers: Sequence[Layer], x: Inputs, outputs: Tensor, sizes: Mapping[str, float]
    ) -> None:
        self.module, self.layers = module, {layer.name: layer for layer in layers}
        self.state = module.state_dict()
        generator = torch.Generator().manual_seed(0)
        self.shifts = {
            layer.name: sizes[layer.name] * torch.randn(prod(layer.form.shape[:2]), generator=generator)
            for layer in layers
            if layer.name in sizes
        }
        self.x, self.outputs = x, outputs
        precision = max(torch.finfo(t.dtype).eps for t in self.state.values() if t.is_floating_point())
        self.rounding = max(LEAST_ROUNDING, (10 * precision) ** 0.5) * float(self.outputs.abs().max())

    def unchanged(self, intercepts: Mapping[str, Intercept]) -> bool:
        """Return whether the network's outputs stay the same, up to rounding, if all of these layers are shifted."""
        before = {name: self.state[intercept.key].clone() for name, intercept in intercepts.items()}
        try:
            with torch.no_grad():
                for name, intercept in intercepts.items():
                    into = self.state[intercept.key]
                    into.sub_(intercept.sign * self.shifts[name].to(into))
            with observing([self.layers[name] for name in intercepts], self._shift):
                return bool(((self._outputs() - self.outputs).abs() <= self.rounding).all())
        finally:
            with torch.no_grad():
                for name, intercept in intercepts.items():
                    self.state[intercept.key].copy_(before[name])

    def _shift(self, call: Call) -> Tensor:
        shift = call.layer.rows(self.shifts[call.layer.name])[slice(*call.groups)].flatten()
        channels = call.geometry.channels or -1
        return call.y + shift.to(call.y).view(-1, *[1] * (-1 - channels))

    def _outputs(self) -> Tensor:
        return forward_one(self.module, self.x).float()


class _Recording:
    """A record of the layers and batch norms that one pass calls.

    ``sizes``: the root mean square of each layer's outputs; ``calls``: how often each layer ran; ``readers``: the
    layers whose outputs each batch norm read, None for any other tensor. All are by name.
    """

    def __init__(self, module: nn.Module, layers: Sequence[Layer]) -> None:
        self.sizes: dict[str, float] = {}
        self.calls: Counter[str] = Counter()
        self.readers: dict[str, set[str | None]] = {}
        # By id, beside the version that an activation in place would raise; the tensor is kept so that no other one
        # takes its id.
        self._outputs: dict[int, tuple[Tensor, int, str]] = {}
        self._layers = layers
        self._norms = {
            norm: name
            for name, norm in module.named_modules()
            if isinstance(norm, _BatchNorm) and norm.running_mean is not None
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record the pass inside."""
        before: dict[nn.Module, InputHook] = dict.fromkeys(self._norms, self._record_input)
        with hooked({}, before), observing(self._layers, self._record_call):
            yield

    def _record_call(self, call: Call) -> None:
        name, y, channels = call.layer.name, call.y, call.geometry.channels
        self.calls[name] += 1
        self.sizes[name] = float(y.float().square().mean().sqrt())
        if channels is not None and y.dim() + channels == 1 and call.is_whole:  # a norm's channels are dimension 1
            self._outputs[id(y)] = (y, y._version, name)

    def _record_input(self, module: nn.Module, x: Tensor) -> None:
        y, version, layer = self._outputs.get(id(x), (None, 0, None))
        unchanged = y is not None and y._version == version
        self.readers.setdefault(self._norms[module], set()).add(layer if unchanged else None)  # type: ignore[index]


def _batch_norm_readers(
    module: nn.Module, layers: list[Layer], x: Inputs
) -> tuple[dict[str, str], dict[str, float], Tensor]:
    """Pass ``x``; return the layer that each batch norm reads, the root mean square of each layer's outputs, both by
    name, and the network's outputs.
    """
    recording = _Recording(module, layers)
    with recording.running():
        outputs = forward_one(module, x).float()
    read_by = Counter(layer for sources in recording.readers.values() for layer in sources)
    readers = {
        norm: layer
        for norm, sources in recording.readers.items()
        for layer in sources
        if layer is not None and len(sources) == 1 and read_by[layer] == 1 and recording.calls[layer] == 1
    }
    return readers, recording.sizes, outputs
