"""The sizes of a network and of what one sample makes of it, measured in passes over that sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunetaylor.data.samples import Inputs
from prunetaylor.network.layer import Call
from prunetaylor.network.network import Network
from prunetaylor.network.observation import observing
from prunetaylor.pruning.activation_cache import bytes_by_layer
from prunetaylor.taylor.curvature.tape import chunk_elements
from prunetaylor.taylor.live_memory import alive_for_backward, alive_in_forward_mode, alive_without_gradients
from prunetaylor.taylor.passes import forward_one
from prunetaylor.taylor.sizes import FLOAT, LayerSize, SampleBytes, Sizes


def network_sizes(network: Network, device: torch.device) -> Sizes:
    """Return the sizes that show without a sample."""
    matrices = {layer.name: layer.matrix(layer.weight.detach()).shape for layer in network.layers}
    return Sizes(
        tuple(LayerSize(name, *shape) for name, shape in matrices.items()),
        state_bytes(network.module),
        sum(p.numel() for p in network.module.parameters() if p.is_floating_point()),
        gradients=FLOAT * chunk_elements(device),
        wide=4 if device.type == "mps" else 8,
    )


def state_bytes(module: nn.Module) -> int:
    """Return the bytes of the parameters and buffers, each counted once."""
    return sum(t.nbytes for t in {id(t): t for t in (*module.parameters(), *module.buffers())}.values())


def measure_sample(sizes: Sizes, network: Network, x: Inputs) -> Sizes:
    """Return the sizes with what the sample ``x`` (1, ...) shows in passes through a copy of the network."""
    network = network.copy()  # hooks may leave in it what a pass has made
    module = network.module
    most, outputs = 0, dict[nn.Module, int]()
    layers = {layer.name: layer for layer in sizes.layers}

    def record(m: nn.Module, inputs: tuple[object, ...], y: object) -> None:
        nonlocal most
        outputs[m] = outputs.get(m, 0) + _bytes(y)
        if not any(True for _ in m.children()):
            most = max(most, _bytes(inputs) + _bytes(y))

    def record_call(call: Call) -> None:
        layer = layers[call.layer.name]
        layers[layer.name] = replace(
            layer,
            # A first dimension that is a multiple of the batch counts as more positions of a sample.
            positions=layer.positions + len(call.inputs) * call.geometry.positions(call.outputs),
            inputs=layer.inputs + call.x.numel(),
            outputs=layer.outputs + call.y.numel(),
        )

    seen = (m for m in module.modules() if not isinstance(m, torch.jit.ScriptModule))  # which take no hooks
    handles = [m.register_forward_hook(record) for m in seen]
    try:
        with observing(network.layers, record_call):
            answer = forward_one(module, x.change_tensors(torch.clone))  # it may be a view of many samples
    finally:
        for handle in handles:
            handle.remove()
    sample = SampleBytes(
        x=sum(tensor.numel() * max(FLOAT, tensor.element_size()) for tensor in x.tensors()),
        module=most,
        forward=alive_without_gradients(module, x),
        backward=alive_for_backward(module, x),
        forward_mode=alive_in_forward_mode(module, x, network.layers),
        replayed=max(bytes_by_layer(module, network.layers, outputs), default=0),
    )
    return replace(sizes, layers=tuple(layers.values()), sample=sample, outputs=answer[0].numel())


def _bytes(value: object) -> int:
    """Return the bytes of the tensors in a module's inputs or outputs."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, tuple | list) else 0
