"""Observe the calls of layers in a pass: products of inputs with a parameter of the network, or with a part of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunetaylor.network.geometry import RowBlocks
from prunetaylor.network.layer import Call, Layer
from prunetaylor.network.products import Product, read_product
from prunetaylor.network.weight_form import WeightBlock, WeightForm, has_form
from prunetaylor.runtime.operators import opened

CallHook = Callable[[Call], Tensor | None]
"""It is called after each call of a layer; a result other than None replaces the call's output."""


class ParameterFinder:
    """The parameters by the memory that they take, so that views of them are known too."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        self._by_storage: dict[int, list[tuple[int, int, str, Tensor]]] = {}
        for name, tensor in parameters:
            first = int(tensor.storage_offset())
            entry = (first, first + tensor.numel(), name, tensor)
            self._by_storage.setdefault(tensor.untyped_storage().data_ptr(), []).append(entry)

    def find(self, tensor: object) -> tuple[str, Tensor] | None:
        """Return the name of the parameter of which ``tensor`` is a view, and the parameter."""
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            return None
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return None
        first = tensor.storage_offset()
        for start, stop, name, parameter in self._by_storage.get(tensor.untyped_storage().data_ptr(), ()):
            if start <= first < stop and tensor.dtype == parameter.dtype:
                return name, parameter
        return None


@contextmanager
def observing(layers: Sequence[Layer], hook: CallHook, weights: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Call the hook after each call of these layers that has entries; it sees no calls that it makes itself.

    ``weights`` are the tensors that stand for the layers' own, by parameter name.
    """
    if not layers:
        yield
        return
    with _Observer(layers, hook, weights or {}), opened():
        yield


class _ProductMode(TorchFunctionMode):
    """Reads every product of a parameter with inputs, and hands it to :meth:`visit` with the output."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()
        self.finder = ParameterFinder(parameters)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        product = read_product(func, self._is_weight, args, kwargs)
        if product is None:
            return self.other(func, args, kwargs, func(*args, **kwargs))
        y = func(*args, **kwargs) if product.compute is None else product.compute()
        return product.finish(self.visit(product, y))

    def _is_weight(self, tensor: Tensor) -> bool:
        return self.finder.find(tensor) is not None

    def visit(self, product: Product, y: Tensor) -> Tensor:
        """Return the output to go on with."""
        raise NotImplementedError

    def other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        """Return the result of a function that is no product of a parameter."""
        return result


class _Observer(_ProductMode):
    def __init__(self, layers: Sequence[Layer], hook: CallHook, weights: Mapping[str, Tensor]) -> None:
        super().__init__((layer.parameter, weights.get(layer.parameter, layer.weight)) for layer in layers)
        self._layers, self._hook = {layer.parameter: layer for layer in layers}, hook

    def visit(self, product: Product, y: Tensor) -> Tensor:
        match = self.finder.find(product.weight)
        if match is None or not product.x.numel():
            return y
        layer = self._layers[match[0]]
        block = block_of(product, match[1])
        if block is None or not has_form(block, layer.form, layer.weight.numel()):
            return y
        each = layer.weight.numel() // layer.groups
        groups = (block.start // each, (block.start + block.size) // each)
        count = (groups[1] - groups[0]) // block.form.groups
        geometry = product.geometry if count == 1 else RowBlocks(product.geometry, count)
        after = self._hook(Call(layer, product.x, y, product.bias, geometry, groups))
        return y if after is None else after


def block_of(product: Product, parameter: Tensor) -> WeightBlock | None:
    """Return which entries of the parameter a product reads, and in which form; None: they are no block."""
    weight, start = product.weight, int(product.weight.storage_offset() - parameter.storage_offset())
    if weight.shape == parameter.shape and weight.stride() == parameter.stride():
        return WeightBlock(0, WeightForm.of(product.sizes, product.roles))
    if not parameter.is_contiguous():
        return None
    view = weight.view(product.sizes) if tuple(weight.shape) != product.sizes else weight
    order = sorted((i for i, n in enumerate(view.shape) if n > 1), key=view.stride, reverse=True)
    step = 1
    for i in reversed(order):
        if view.stride(i) != step:
            return None
        step *= view.shape[i]
    return WeightBlock(start, WeightForm.of([view.shape[i] for i in order], "".join(product.roles[i] for i in order)))


@dataclass
class ParameterUses:
    """A record of how a pass used one parameter."""

    blocks: list[WeightBlock | None] = field(default_factory=list)  # of products; None: no block of rows
    modules: list[str] = field(default_factory=list)  # whose own code called the products
    biases: set[str | None] = field(default_factory=set)  # names of what the products add
    others: set[str] = field(default_factory=set)  # names of other functions


class UseRecorder(_ProductMode):
    """A record of how passes inside the context use the parameters of a network, in the order of their first use."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module.named_parameters())
        self.uses: dict[str, ParameterUses] = {}
        self._module, self._running = module, [""]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record what happens inside."""

        def enter(name: str) -> Callable[..., None]:
            return lambda *_: self._running.append(name)

        def leave(*_: object) -> None:
            self._running.pop()

        handles = []
        for name, child in self._module.named_modules():
            if isinstance(child, torch.jit.ScriptModule):
                continue
            handles.append(child.register_forward_pre_hook(enter(name)))
            handles.append(child.register_forward_hook(leave, always_call=True))
        try:
            with self, opened():
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._running = [""]

    def visit(self, product: Product, y: Tensor) -> Tensor:
        match = self.finder.find(product.weight)
        if match is not None:
            uses = self.uses.setdefault(match[0], ParameterUses())
            uses.blocks.append(block_of(product, match[1]))
            uses.modules.append(self._running[-1])
            bias = self.finder.find(product.bias)
            uses.biases.add(bias[0] if bias is not None else None)
        return y

    def other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
        for one in (*args, *kwargs.values()) if isinstance(result, Tensor) else ():
            match = self.finder.find(one)
            if match is not None and self.finder.find(result) is None:
                name = getattr(func, "__name__", str(func)).strip("_")
                self.uses.setdefault(match[0], ParameterUses()).others.add(name)
        return result
