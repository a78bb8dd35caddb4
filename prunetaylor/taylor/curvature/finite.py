"""Errors for tensors that are not finite, with the layer where that began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import jvp

from prunetaylor.core.errors import NumericsError
from prunetaylor.data.samples import Inputs
from prunetaylor.network.layer import Layer
from prunetaylor.network.state import evaluating
from prunetaylor.runtime.forward_mode import differentiable
from prunetaylor.taylor.passes import OutputHook, compute_outputs, hooked
from prunetaylor.taylor.risk import Risk


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise NumericsError, naming the first, if tensors are not finite; they are given by name in running order.

    In a backward pass values that are not finite spread to all earlier layers: the last one is where they began.
    """
    bad = [name for name, tensor in tensors.items() if not _finite(tensor)]
    if bad:
        raise NumericsError(
            f"{bad[0]}: {what} is not finite",
            f"look for a square root, logarithm or division at zero behind {bad[-1]}; else at the samples and weights",
        )


def not_finite_along(
    risk: Risk, layers: Sequence[Layer], state: Mapping[str, Tensor], step: Mapping[str, Tensor]
) -> NumericsError:
    """Return the error for a derivative along ``step`` that is not finite, naming the layers between which that begins.

    They are found by forward-mode products. ``state`` and ``step`` are by name, as in :meth:`TaylorModel.predict`.
    """
    what = "the predicted change of the error is not finite"
    for name, moved in step.items():
        if not _finite(moved):
            return NumericsError(f"{what}, as the move of {name} is not", "raise prune.damping")
    for _, x, _ in risk.own():
        before = "the input"
        for name, moved in _derivatives(risk.module, layers, state, step, x):
            if not _finite(moved):
                return _between(what, before, name)
            before = name
        # Through all layers, then: what is left is behind the last one, in this batch or another.
    return _between(what, before, "the error")


def _between(what: str, before: str, after: str) -> NumericsError:
    return NumericsError(
        f"{what}: no finite derivative between {before} and {after}",
        "look there for a square root, logarithm or division at zero, and add a small constant to its argument",
    )


def _derivatives(
    module: nn.Module, layers: Sequence[Layer], state: Mapping[str, Tensor], step: Mapping[str, Tensor], x: Inputs
) -> list[tuple[str, Tensor]]:
    """Return (name, derivative of its outputs along the step) of each call of a layer, in the order of the calls."""
    calls: list[tuple[str, Tensor]] = []
    rest = {name: tensor for name, tensor in state.items() if name not in step}

    def network(part: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        compute_outputs(module, x, {**rest, **part})
        return tuple(y for _, y in calls)

    def record(name: str) -> OutputHook:
        def hook(_: nn.Module, __: object, y: Tensor) -> None:
            calls.append((name, y.clone()))  # an activation may overwrite it

        return hook

    hooks: dict[nn.Module, OutputHook] = {used: record(layer.name) for layer in layers for used in layer.modules}
    with evaluating(module), torch.no_grad(), differentiable(), hooked(hooks):
        moved = jvp(network, ({name: state[name] for name in step},), (dict(step),))[1]
    return [(name, y) for (name, _), y in zip(calls, moved, strict=True)]


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
