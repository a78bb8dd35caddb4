"""The types of a network's numbers: 16-bit weights are computed with in float32 and given back as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

NumberTypes = Mapping[str, torch.dtype]
"""Types of parameters and buffers, by name, that differ from those that a run computes with."""


def compute_in_float32(module: nn.Module) -> dict[str, torch.dtype]:
    """Convert 16-bit parameters and buffers to float32, in place; return what :func:`convert` restores."""
    types = {name: t.dtype for name, t in _tensors(module).items() if t.is_floating_point() and t.dtype.itemsize < 4}
    convert(module, dict.fromkeys(types, torch.float32))
    return types


def convert(module: nn.Module, types: NumberTypes) -> None:
    """Give the tensors of these names these types, in place."""
    tensors = _tensors(module)
    for name, dtype in types.items():
        if name in tensors:
            tensors[name].data = tensors[name].data.to(dtype)


def types_in(state: Mapping[str, Tensor], module: nn.Module) -> dict[str, torch.dtype]:
    """Return the types of floating-point numbers in a file's ``state`` that differ from the module's."""
    return {
        name: state[name].dtype
        for name, tensor in _tensors(module).items()
        if name in state and state[name].is_floating_point() and state[name].dtype != tensor.dtype
    }


@contextmanager
def stored_as(module: nn.Module, types: NumberTypes) -> Iterator[None]:
    """Let the tensors have these types inside the block; afterwards their values are those rounded to them."""
    tensors = _tensors(module)
    computed = {name: tensors[name].dtype for name in types if name in tensors}
    convert(module, types)
    try:
        yield
    finally:
        convert(module, computed)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
