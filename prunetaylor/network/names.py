"""Tensors by name: which names a tensor has, and which parameters are meant."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn


def own_names(module: nn.Module) -> dict[str, str]:
    """The first name of each parameter and buffer, by every name that it has: a tied tensor moves once, as one."""
    first: dict[int, str] = {}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def parameters_named(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters of these names, each once, under its own name; ValueError where there is none of a name."""
    known, own = dict(module.named_parameters()), own_names(module)
    found = {}
    for name in names:
        if own.get(name) not in known:
            raise ValueError(f"the network has no parameter {name!r}")
        found[own[name]] = known[own[name]]
    return found


def movable(module: nn.Module, alone: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """The floating-point parameters, each once, but for those named in ``alone`` or inside of modules named there."""
    return {
        name: p
        for name, p in module.named_parameters()
        if p.is_floating_point() and not any(name == one or name.startswith(f"{one}.") for one in alone)
    }
