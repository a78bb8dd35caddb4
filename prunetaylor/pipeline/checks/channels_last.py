"""The memory format of a network's convolutions: channels last, which is fastest, where the network supports it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from prunetaylor.core.text import error_line
from prunetaylor.data.samples import Inputs
from prunetaylor.network.state import channels_last, copy_module
from prunetaylor.pipeline.planning.facts import Facts
from prunetaylor.taylor.curvature.directional import differentiate_outputs
from prunetaylor.taylor.passes import compute_outputs

_TOLERANCE = 0.05
"""Relative to the outputs' norm: rounding in half precision moves them by less, values read in another order by far
more."""


@contextmanager
def use_memory_format(facts: Facts, *modules: nn.Module) -> Iterator[None]:
    """Store the weights of the convolutions of ``modules``, copies of one network, with channels last inside the block.

    Convolutions are fastest in this format, forward and backward, on CPUs and GPUs. Their outputs then have it too, and
    networks that read these with ``view`` do not support it: their weights stay as they are.
    """
    with ExitStack() as stack:
        if facts.plain_layout is None:
            for module in modules:
                stack.enter_context(channels_last(module))
        yield


def would_gain(module: nn.Module, device: torch.device) -> bool:
    """Return whether there are convolutions that channels last makes faster on the device."""
    return device.type in ("cpu", "cuda") and any(p.dim() == 4 for p in module.parameters())


def find_obstacle(module: nn.Module, x: Inputs) -> str | None:
    """Return why ``module`` does not support channels last; None where it does, empty where it does not run at all.

    A copy makes all kinds of passes over ``x`` that a run may need, in both formats: with gradients in evaluation mode,
    where the outputs must be the same, with forward-mode derivatives, and with gradients in training mode, as there may
    be branches for that alone. A pass that fails in either format does not count against channels last.
    """
    copy, x_last = copy_module(module), x.change_tensors(_in_channels_last)
    for parameter in copy.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        expected = _attempt(_run_backward, copy.eval(), x)
        if isinstance(expected, Exception):
            return ""  # reported by whoever needs its outputs
        with channels_last(copy):
            for inputs in (x, x_last):
                outputs = _attempt(_run_backward, copy, inputs)
                if isinstance(outputs, Exception):
                    return _describe(outputs)
                if outputs.shape != expected.shape or not _is_close(outputs, expected):
                    return "the network puts out something else"
        for run, training in ((_run_forward_mode, False), (_run_backward, True)):
            with channels_last(copy):
                outputs = _attempt(run, copy.train(training), x_last)
            if isinstance(outputs, Exception) and isinstance(_attempt(run, copy, x), Tensor):
                return _describe(outputs)
    return None


def _in_channels_last(part: Tensor) -> Tensor:
    return part.contiguous(memory_format=torch.channels_last) if part.dim() == 4 else part


def _attempt(run: Callable[[nn.Module, Inputs], Tensor], module: nn.Module, x: Inputs) -> Tensor | Exception:
    """Return the outputs, or the exception: the network's code may raise anything."""
    try:
        return run(module, x)
    except Exception as error:
        return error


def _run_backward(module: nn.Module, x: Inputs) -> Tensor:
    with torch.enable_grad():
        outputs = compute_outputs(module, x).float()
        if outputs.requires_grad:
            weights = [p for p in module.parameters() if p.requires_grad]
            torch.autograd.grad(outputs.sum(), weights, allow_unused=True)
    return outputs.detach()


def _run_forward_mode(module: nn.Module, x: Inputs) -> Tensor:
    """Differentiate along the weights themselves."""
    weights = {name: p.detach() for name, p in module.named_parameters() if p.is_floating_point()}
    return differentiate_outputs(module, x, weights, weights)[0]


def _is_close(outputs: Tensor, expected: Tensor) -> bool:
    same = torch.isfinite(outputs) == torch.isfinite(expected)
    outputs, expected = outputs.nan_to_num(0, 0, 0), expected.nan_to_num(0, 0, 0)
    return bool(same.all()) and float((outputs - expected).norm()) <= _TOLERANCE * float(expected.norm())


def _describe(error: Exception) -> str:
    """Describe the error in one line."""
    return f"the network fails: {error_line(error, 200)}"
