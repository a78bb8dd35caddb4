"""Replace functions of torch, whatever module calls them, and open those that hide products of a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint

from prunetaylor.runtime.recurrent import STEP_BY_STEP

Function = Callable[..., Any]


class override_functions(TorchFunctionMode):
    """Redirect calls of these functions, which torch must let be overridden, to others with the same arguments."""

    def __init__(self, by: Mapping[Function, Function]) -> None:
        super().__init__()
        self._by = by

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._by.get(func, func)(*args, **(kwargs or {}))


@contextmanager
def plainly(*, gradients: bool) -> Iterator[None]:
    """Run a network inside the context without what its author added for speed or memory alone.

    Attention's fast path leaves out padded positions. A reentrant checkpoint takes no part in a gradient in chosen
    tensors. With ``gradients``, parts under ``no_grad`` have one: they are functions of their weights too.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    function = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = _NoCheckpoint  # type: ignore[misc, assignment]
    try:
        with _keep_gradients() if gradients else nullcontext():
            yield
    finally:
        checkpoint.CheckpointFunction = function  # type: ignore[misc]
        torch.backends.mha.set_fastpath_enabled(fast)


class _NoCheckpoint:
    @staticmethod
    def apply(function: Function, preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


class _keep_gradients(TorchFunctionMode):
    """Ignores requests to record no gradients."""

    def __torch_function__(
        self, func: Function, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._C._set_grad_enabled and args == (False,):
            return None
        return func(*args, **(kwargs or {}))


def opened() -> override_functions:
    """Compute attention and recurrent networks inside the context by plain products, which other modes see."""
    return override_functions(_OPENED)


def _enter(function: Function) -> Function:
    """Return a copy of a function of ``torch.nn.functional`` that asks no mode to override it, only what it calls."""
    assert isinstance(function, FunctionType)
    own = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(function.__code__, own, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_OPENED: dict[Function, Function] = {
    functional.multi_head_attention_forward: _enter(functional.multi_head_attention_forward),
    **STEP_BY_STEP,
}
