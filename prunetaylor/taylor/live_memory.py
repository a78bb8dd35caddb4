"""The bytes of one sample's tensors that are alive at a time in a pass, wherever they are made."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunetaylor.network.layer import Layer
from prunetaylor.network.state import evaluating
from prunetaylor.runtime.forward_mode import differentiable
from prunetaylor.taylor.outputs import read_outputs

_CLOSED = (
    "aten::_transformer_encoder_layer_fwd",
    "aten::_native_multi_head_attention",
    "aten::_scaled_dot_product_attention_math_for_mps",
)
"""Operators that hold products of all tokens with all others, and show none of it."""


def alive_without_gradients(module: nn.Module, x: Tensor) -> int:
    """In a pass over the sample ``x`` (1, ...), itself aside, as outputs are computed without gradients."""
    x = x.clone()  # it may be a view of many samples
    watch = _Watch(x)
    with evaluating(module), torch.no_grad():
        with watch:
            module(x)
        if watch.closed:  # plain products stand for it
            with differentiable(), watch:
                module(x)
    return watch.most


def alive_in_forward_mode(module: nn.Module, x: Tensor, layers: Sequence[Layer]) -> int:
    """In a pass over the sample ``x`` (1, ...), itself aside, with derivatives along all parameters.

    Along the weights of ``layers`` alone where others have none. Zero where these have none either: to say so is for
    whoever needs them.
    """
    x = x.clone()

    def network(part: Mapping[str, Tensor]) -> Tensor:
        return read_outputs(module, functional_call(module, dict(part), (x,)))

    every = {name: p.detach() for name, p in module.named_parameters() if p.is_floating_point()}
    for at in (every, {layer.parameter: layer.weight.detach() for layer in layers}):
        watch = _Watch(x)
        # The network's code may raise anything.
        with suppress(Exception), evaluating(module), torch.no_grad(), differentiable(), watch:
            jvp(network, (at,), (at,))
            return watch.most
    return 0


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, follows every tensor that is computed from ``x``, and no other: weights made of weights are the same for
    any number of samples. ``most`` is what they have taken at one time; ``closed`` whether an operator showed nothing.
    """

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most, self.closed = 0, False
        self._sizes = {x.untyped_storage()._cdata: 0}
        self._ends: dict[int, Any] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.closed = self.closed or func.name() in _CLOSED
        if any(s._cdata in self._sizes for s in _storages((args, kwargs))):
            for storage in _storages(result):
                self._follow(storage)
            self.most = max(self.most, sum(self._sizes.values()))
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self._sizes:
            self._sizes[address] = storage.nbytes()
            self._ends[address] = weakref.ref(storage, self._end_of(address))

    def _end_of(self, address: int) -> Callable[[object], None]:
        def end(_: object) -> None:
            del self._sizes[address], self._ends[address]

        return end


def _storages(values: object) -> list[torch.UntypedStorage]:
    """Return the storages of all dense tensors in ``values``; the others have none of their own."""
    return [
        value.untyped_storage()
        for value in tree_leaves(values)
        if isinstance(value, Tensor) and value.layout is torch.strided
    ]
