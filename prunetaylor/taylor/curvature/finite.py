"""Errors for tensors that are not finite, with the layer where that began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from prunetaylor.core.errors import NumericsError
from prunetaylor.data.samples import Inputs
from prunetaylor.network.layer import Call, Layer
from prunetaylor.network.observation import observing
from prunetaylor.network.state import evaluating
from prunetaylor.runtime.forward_mode import differentiable
from prunetaylor.taylor.passes import compute_outputs
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

    def record(call: Call) -> None:
        tangent = forward_ad.unpack_dual(call.y).tangent  # type: ignore[no-untyped-call]
        calls.append((call.layer.name, torch.zeros_like(call.y) if tangent is None else tangent.clone()))

    with evaluating(module), torch.no_grad(), differentiable(), forward_ad.dual_level():
        dual = {name: forward_ad.make_dual(state[name], moved) for name, moved in step.items()}  # type: ignore[no-untyped-call]
        at = {**state, **dual}
        with observing(layers, record, at):
            compute_outputs(module, x, at)
    return calls


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
