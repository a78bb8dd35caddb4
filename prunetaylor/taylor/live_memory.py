"""The bytes of tensors that are alive at a time while something runs, counted at each of torch's operators.

Memory that a kernel allocates inside itself does not show.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunetaylor.data.samples import Inputs
from prunetaylor.network.layer import Layer
from prunetaylor.network.state import evaluating, trainable
from prunetaylor.runtime.forward_mode import differentiable
from prunetaylor.taylor.outputs import read_outputs

_CLOSED = (
    "aten::_transformer_encoder_layer_fwd",
    "aten::_native_multi_head_attention",
    "aten::_scaled_dot_product_attention_math_for_mps",
)
"""Operators that hold products of all tokens with all others, and show none of it."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the tensors that are made inside; ``now`` is what is alive, and ``most`` was alive at one time.

    With ``x`` only tensors that are computed from it count: weights made of weights are the same for any number of
    samples. ``closed`` says whether an operator showed nothing.
    """

    def __init__(self, x: Inputs | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.most, self.closed = 0, 0, False
        self._sources = None if x is None else {tensor.untyped_storage()._cdata for tensor in x.tensors()}
        self._ends: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        self.closed = self.closed or func.name() in _CLOSED
        sources = self._sources
        if sources is None or not given.isdisjoint(sources) or not given.isdisjoint(self._ends):
            old = given if sources is None else sources
            for storage in _storages(result):
                if storage._cdata not in old and storage._cdata not in self._ends:
                    self._count(storage._cdata, storage)
            self.most = max(self.most, self.now)
        return result

    def _count(self, address: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()

        def end(_: object) -> None:
            self.now -= size
            del self._ends[address]

        self.now += size
        self._ends[address] = weakref.ref(storage, end)


def _storages(values: object) -> list[torch.UntypedStorage]:
    """Return the storages of all dense tensors in ``values``; the others have none of their own."""
    return [
        value.untyped_storage()
        for value in tree_leaves(values)
        if isinstance(value, Tensor) and value.layout is torch.strided
    ]


def most_alive(function: Callable[[], object]) -> int:
    """Return the most bytes that ``function`` has allocated at one time."""
    with LiveBytes() as live:
        function()
    return int(live.most)


def alive_without_gradients(module: nn.Module, x: Inputs) -> int:
    """Return the most bytes in a pass over the sample ``x``, itself aside, without gradients."""
    x = x.change_tensors(torch.clone)  # it may be a view of many samples
    live = LiveBytes(x)
    with evaluating(module), torch.no_grad():
        with live:
            x.call(module)
        if live.closed:  # plain products stand for it
            with differentiable(), live:
                x.call(module)
    return live.most


def alive_for_backward(module: nn.Module, x: Inputs) -> int:
    """Return the bytes that a pass over the sample ``x``, itself aside, leaves for the backward pass."""
    x = x.change_tensors(torch.clone)
    live = LiveBytes(x)
    parameters = [p for p in module.parameters() if p.is_floating_point()]
    with evaluating(module), trainable(parameters), torch.enable_grad(), live:
        outputs = x.call(module)
        kept = live.now
    del outputs
    return kept


def alive_in_forward_mode(module: nn.Module, x: Inputs, layers: Sequence[Layer]) -> int:
    """Return the most bytes in a pass over the sample ``x``, itself aside, with derivatives along parameters.

    Along the weights of ``layers`` alone where others have none. Zero where these have none either: to say so is for
    whoever needs them.
    """
    x = x.change_tensors(torch.clone)

    def network(part: Mapping[str, Tensor]) -> Tensor:
        return read_outputs(module, x.call(module, part))

    every = {name: p.detach() for name, p in module.named_parameters() if p.is_floating_point()}
    for at in (every, {layer.parameter: layer.weight.detach() for layer in layers}):
        live = LiveBytes(x)
        # The network's code may raise anything.
        with suppress(Exception), evaluating(module), torch.no_grad(), differentiable(), live:
            jvp(network, (at,), (at,))
            return live.most
    return 0
