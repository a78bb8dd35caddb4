"""Names of tensors: the first of several names, and the parameters that names select."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import nn


def own_names(module: nn.Module) -> dict[str, str]:
    """Return the first name of each parameter and buffer by every name that it has: a tied tensor moves once."""
    first: dict[int, str] = {}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def parameters_named(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the named parameters, each once under its first name. Raises ValueError: no parameter has a name."""
    known, own = dict(module.named_parameters()), own_names(module)
    parameters = {}
    for name in names:
        if own.get(name) not in known:
            raise ValueError(f"the network has no parameter {name!r}")
        parameters[own[name]] = known[own[name]]
    return parameters


def movable_parameters(module: nn.Module, frozen: Collection[str] = ()) -> dict[str, nn.Parameter]:
    """Return the floating-point parameters, except those named in ``frozen`` or inside modules named there."""
    return {
        name: p
        for name, p in module.named_parameters()
        if p.is_floating_point() and not any(name == one or name.startswith(f"{one}.") for one in frozen)
    }
