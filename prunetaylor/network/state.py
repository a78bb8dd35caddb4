"""What the engine changes for a while is put back: modes, hooks, gradients, weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every submodule's own mode restored after."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, by name; extra state that is no tensor is not moved by anything here."""
    return {name: t.detach().clone() for name, t in module.state_dict().items() if isinstance(t, Tensor)}


@torch.no_grad()
def restore(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Write a snapshot back in place."""
    current = module.state_dict()
    for name, tensor in state.items():
        current[name].copy_(tensor)
