"""What the engine changes for a while is put back: modes, hooks, gradients, weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from prunetaylor.core.errors import NumericsError, UsageError
from prunetaylor.core.text import first_line


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


@contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """The weights of 2-d convolutions laid out with channels last, where theirs is the plain layout; plain again after.

    What such a convolution puts out is laid out so too, which not every network bears: prunetaylor/layout.py tries it.
    Gradients are fastest where the network's inputs are as well.
    """
    plain = [p for p in module.parameters() if p.dim() == 4 and p.is_contiguous()]
    for parameter in plain:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for parameter in plain:
            parameter.data = parameter.data.contiguous()


@contextmanager
def fixed_order(device: torch.device, threads: int | None = None) -> Iterator[None]:
    """Inside, convolutions on a GPU sum in the same order each time, and a CPU as with so many ``threads``."""
    was, number = torch.backends.cudnn.deterministic, torch.get_num_threads()
    torch.backends.cudnn.deterministic = device.type == "cuda" or was
    if threads is not None and device.type == "cpu":
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = was
        if torch.get_num_threads() != number:
            torch.set_num_threads(number)


def like_weights(module: nn.Module, x: Tensor) -> Tensor:
    """Inputs with channels last where the weights lie so, which is where that is fastest and known to work."""
    if x.dim() != 4 or all(p.dim() != 4 or p.is_contiguous() for p in module.parameters()):
        return x
    return x.contiguous(memory_format=torch.channels_last)


@contextmanager
def trainable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """These parameters require gradients inside; which of them did before is restored after."""
    frozen = [p for p in parameters if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def copied(module: nn.Module) -> nn.Module:
    """A copy that shares nothing with ``module``. UsageError where it holds what cannot be copied.

    Tensors that a graph gave, such as the weights that ``torch.nn.utils.weight_norm`` leaves, are copied without it:
    they are computed anew in each pass.
    """
    held = (value for m in module.modules() for value in [*vars(m).values(), *m._buffers.values()])
    memo = {id(t): t.detach().clone() for t in held if isinstance(t, Tensor) and not t.is_leaf}
    try:
        return copy.deepcopy(module, memo)
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        raise UsageError(
            f"the network cannot be copied: {first_line(error)}",
            "keep what cannot be copied (results of a pass, locks, open files) out of its modules",
        ) from error


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, by name; extra state that is no tensor is not moved by anything here."""
    return {name: t.detach().clone() for name, t in module.state_dict().items() if isinstance(t, Tensor)}


@torch.no_grad()
def restore(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write a snapshot back in place."""
    current = module.state_dict()
    for name, tensor in state.items():
        current[name].copy_(tensor)


def check_present(module: nn.Module) -> None:
    """UsageError where a parameter or buffer has no values yet."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(f"{name} has no shape yet, as its module is lazy", "run the network on a sample first")
        if tensor.is_meta:
            remedy = "give it some first: module.to_empty(device='cpu'), then load_state_dict"
            raise UsageError(f"{name} is on the meta device and has no values", remedy)


def not_finite(module: nn.Module) -> list[str]:
    """Names of the parameters and the statistics of batch norms that are not finite.

    Other buffers may well be: masks of attention hold minus infinity.
    """
    named: dict[str, Tensor] = dict(module.named_parameters())
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            named |= {f"{name}.{key}" if name else key: t for key, t in norm.named_buffers(recurse=False)}
    return [name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all())]


def check_values(module: nn.Module) -> None:
    """NumericsError, naming the first, where parameters or the statistics of batch norms are not finite."""
    if bad := not_finite(module):
        others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise NumericsError(
            f"{bad[0]}{others} has values that are not finite", "prune a checkpoint from before its training diverged"
        )


def displacement(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By how much each tensor has moved since ``state``; extra state and counters do not move.

    Neither do infinities that stay what they are: masks of attention.
    """
    now = module.state_dict()
    moved = {name: now[name] - value for name, value in state.items() if value.is_floating_point()}
    return {name: move.masked_fill_(now[name] == state[name], 0) for name, move in moved.items()}
