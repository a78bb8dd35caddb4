"""Replace operators that have no forward-mode derivatives by others that do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunetaylor.runtime.operators import Function, opened, override_functions


@contextmanager
def differentiable() -> Iterator[None]:
    """Replace the operators that have no forward-mode derivative by plain arithmetic inside the context.

    Fused attention and recurrent networks have none at all, batch norm none in its running statistics, which a repair
    moves, and group norm none for inputs in the channels-last memory format.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            sdpa_kernel(SDPBackend.MATH),
            override_functions(_WITH_DERIVATIVES),
            opened(),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _stored_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``torch.nn.functional.batch_norm`` with stored statistics by plain arithmetic."""
    if training or running_mean is None or running_var is None:
        return nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    # One product and one sum of the input's size: each costs three in forward mode.
    scale = (running_var + eps).rsqrt() if weight is None else weight * (running_var + eps).rsqrt()
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (1, -1, *[1] * (input.dim() - 2))
    return input * scale.view(shape) + shift.view(shape)


def _contiguous_group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Compute ``torch.nn.functional.group_norm`` of the same values in the contiguous memory format."""
    return nn.functional.group_norm(input.contiguous(), num_groups, weight, bias, eps)


_WITH_DERIVATIVES: dict[Function, Function] = {
    nn.functional.batch_norm: _stored_batch_norm,
    nn.functional.group_norm: _contiguous_group_norm,
}
