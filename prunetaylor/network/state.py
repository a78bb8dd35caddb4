"""Context managers that restore what the engine changes for a while, and copies of a network's state."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CellType, FunctionType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from prunetaylor.core.errors import NumericsError, UsageError
from prunetaylor.core.text import first_line


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put the module into evaluation mode; afterwards every submodule has its own mode again."""
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, mode in modes.items():
            child.training = mode


@contextmanager
def channels_last(module: nn.Module) -> Iterator[None]:
    """Store contiguous weights of 2-d convolutions in the channels-last memory format, and restore them afterwards.

    The outputs of such a convolution have that format too, with which not every network works:
    ``pipeline/checks/channels_last.py`` tries it. Gradients are fastest if the inputs have it as well.
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
    """Make convolutions on a GPU sum in a fixed order, and a CPU compute with ``threads`` threads."""
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


def match_memory_format(module: nn.Module, x: Tensor) -> Tensor:
    """Return inputs in the channels-last format if the weights have it, where it is fastest and known to work."""
    if x.dim() != 4 or all(p.dim() != 4 or p.is_contiguous() for p in module.parameters()):
        return x
    return x.contiguous(memory_format=torch.channels_last)


@contextmanager
def trainable(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let these parameters require gradients; those that did not before no longer do afterwards."""
    frozen = [p for p in parameters if not p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DistributedDataParallel and ``torch.compile``."""
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inside := getattr(module, "_orig_mod", None), nn.Module):
            module = inside
        else:
            return module


def copy_module(module: nn.Module) -> nn.Module:
    """Return a copy that shares nothing with ``module``.

    Tensors that belong to a graph, such as the weights that ``torch.nn.utils.weight_norm`` stores, are copied without
    it: each pass computes them again.

    Raises UsageError: the module holds something that cannot be copied.
    """
    values = (value for m in module.modules() for value in [*vars(m).values(), *m._buffers.values()])
    memo = {id(t): t.detach().clone() for t in values if isinstance(t, Tensor) and not t.is_leaf}
    try:
        copied = copy.deepcopy(module, memo)
        _rebind_hooks(copied, memo)
        return copied
    except (RuntimeError, TypeError, AttributeError, NotImplementedError) as error:
        raise UsageError(
            f"the network cannot be copied: {first_line(error)}",
            "store what cannot be copied (results of a pass, locks, open files) outside its modules",
        ) from error


def _rebind_hooks(module: nn.Module, copies: Mapping[int, object]) -> None:
    """Let hooks that refer to modules of the original, by their closures, refer to the copies."""
    for child in module.modules():
        for hooks in (child._forward_hooks, child._forward_pre_hooks):
            for key, hook in hooks.items():
                if isinstance(hook, FunctionType) and hook.__closure__:
                    inside = [cell.cell_contents for cell in hook.__closure__]
                    if any(isinstance(one, nn.Module) and id(one) in copies for one in inside):
                        cells = tuple(CellType(copies.get(id(one), one)) for one in inside)
                        bound = FunctionType(hook.__code__, hook.__globals__, hook.__name__, hook.__defaults__, cells)
                        bound.__kwdefaults__ = hook.__kwdefaults__
                        hooks[key] = bound


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter and buffer by name; extra state that is not a tensor never changes here."""
    return {name: t.detach().clone() for name, t in module.state_dict().items() if isinstance(t, Tensor)}


@torch.no_grad()
def restore(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a snapshot back into the module's tensors."""
    current = module.state_dict()
    for name, tensor in state.items():
        current[name].copy_(tensor)


def check_present(module: nn.Module) -> None:
    """Raise UsageError if a parameter or buffer has no values yet."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise UsageError(f"{name} has no shape yet, as its module is lazy", "run the network on a sample first")
        if tensor.is_meta:
            remedy = "give it some first: module.to_empty(device='cpu'), then load_state_dict"
            raise UsageError(f"{name} is on the meta device and has no values", remedy)


def nonfinite_tensors(module: nn.Module) -> list[str]:
    """Return the names of parameters and batch-norm statistics that are not finite.

    Other buffers may be infinite: attention masks hold minus infinity.
    """
    named: dict[str, Tensor] = dict(module.named_parameters())
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm):
            named |= {f"{name}.{key}" if name else key: t for key, t in norm.named_buffers(recurse=False)}
    return [name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all())]


def check_values(module: nn.Module) -> None:
    """Raise NumericsError, naming the first, if parameters or batch-norm statistics are not finite."""
    if bad := nonfinite_tensors(module):
        others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise NumericsError(
            f"{bad[0]}{others} has values that are not finite", "prune a checkpoint from before its training diverged"
        )


def displacement(module: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return by how much each floating-point tensor has moved since ``state``.

    Infinities that stay the same, as in attention masks, do not move.
    """
    now = module.state_dict()
    moved = {name: now[name] - value for name, value in state.items() if value.is_floating_point()}
    return {name: move.masked_fill_(now[name] == state[name], 0) for name, move in moved.items()}
