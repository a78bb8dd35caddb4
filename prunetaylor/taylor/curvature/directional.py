"""The outputs of a network and their derivative J v along a step of its state.

A forward-mode product is fastest and needs the least memory. Where an operator has none (``grid_sample``, ``cdist``, a
function of the user's), two backward passes give the same: the gradient J'u is linear in u, and its own gradient in u
along v is J v. Where backward passes cannot be differentiated either, a central difference stands for the derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import jvp

from prunetaylor.core.text import first_line
from prunetaylor.data.samples import Inputs
from prunetaylor.runtime.forward_mode import differentiable
from prunetaylor.taylor.passes import compute_outputs

State = Mapping[str, Tensor]
Way = Callable[[nn.Module, Inputs, State, State], tuple[Tensor, Tensor]]

DIFFERENCE = 5e-3
"""The half-width of a central difference, relative to the state's norm: the cube root of float32's precision."""
_UNSUPPORTED = ("forward ad", "forward mode", "forward-mode", "jvp", "functorch", "setup_context", "double backward")
"""Parts of the messages with which torch refuses a derivative."""


def differentiate_outputs(
    module: nn.Module, x: Inputs, state: State, step: State, note: Callable[[str], object] | None = None
) -> tuple[Tensor, Tensor]:
    """Return the outputs z (B, K) at ``state`` and their derivative J v (B, K) along v = ``step``, in float32.

    ``state`` has every tensor that ``step`` moves; tensors that it lacks are those of the module. ``note`` is told once
    if the derivative is not computed in forward mode.
    """
    ways = list(_WAYS)
    for way in ways[ways.index(_chosen.get(module, ways[0])) :]:
        try:
            return way(module, x, state, step)
        except (NotImplementedError, RuntimeError) as error:
            if way is ways[-1] or not _refuses_derivative(error):
                raise
            following = ways[ways.index(way) + 1]
            _chosen[module] = following
            if note is not None:
                note(f"derivatives: {_WAYS[following]}, as {_WAYS[way]} fails ({first_line(error)})")
    raise AssertionError


def _refuses_derivative(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, NotImplementedError) or "derivative" in text or any(one in text for one in _UNSUPPORTED)


def _forward_mode(module: nn.Module, x: Inputs, state: State, step: State) -> tuple[Tensor, Tensor]:
    fixed = {name: tensor for name, tensor in state.items() if name not in step}

    def network(moving: State) -> Tensor:
        return compute_outputs(module, x, {**fixed, **moving}).float()

    outputs: Tensor
    derivative: Tensor
    with torch.no_grad(), differentiable():
        outputs, derivative = jvp(network, ({name: state[name] for name in step},), (dict(step),))[:2]
    return outputs, derivative


def _two_backward_passes(module: nn.Module, x: Inputs, state: State, step: State) -> tuple[Tensor, Tensor]:
    at = {name: state[name].detach().requires_grad_() for name in step}
    with torch.enable_grad(), differentiable():
        outputs = compute_outputs(module, x, {**state, **at}).float()
        u = torch.zeros_like(outputs, requires_grad=True)
        back = torch.autograd.grad(outputs, list(at.values()), u, create_graph=True, allow_unused=True)
        along = [(g * v).sum() for g, v in zip(back, step.values(), strict=True) if g is not None and g.requires_grad]
        if not along:
            return outputs.detach(), torch.zeros_like(outputs)
        (moved,) = torch.autograd.grad(torch.stack(along).sum(), u)
    return outputs.detach(), moved


def _difference(module: nn.Module, x: Inputs, state: State, step: State) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        size = sum(float(state[name].square().sum()) for name in step)
        moved = sum(float(v.square().sum()) for v in step.values())
        h = DIFFERENCE * (size / moved) ** 0.5 if moved and size else 1.0
        outputs, up, down = (
            compute_outputs(module, x, {**state, **{name: state[name] + by * v for name, v in step.items()}}).float()
            for by in (0.0, h, -h)
        )
    return outputs, (up - down) / (2 * h)


_WAYS: dict[Way, str] = {
    _forward_mode: "forward mode",
    _two_backward_passes: "two backward passes",
    _difference: "a central difference",
}
_chosen: WeakKeyDictionary[nn.Module, Way] = WeakKeyDictionary()
