"""Masks: boolean tensors by parameter name, True = keep; and a handle that keeps removed weights at zero in
training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunetaylor.core.errors import NumericsError, UsageError, close_match


def masks_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the masks of all weights that may have been pruned, from their zeros: matrices and kernels, not tables."""
    embeddings = (m for m in module.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
    tables = {id(m.weight) for m in embeddings}
    return {
        name: p.detach() != 0
        for name, p in module.named_parameters()
        if p.dim() > 1 and p.is_floating_point() and id(p) not in tables
    }


@torch.no_grad()
def apply_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights that masks remove to zero, in place, whatever their value was (NaN included).

    A zero stays as it is, even a negative one, so that a resumed run has the same bits as the interrupted one.
    """
    for parameter, mask in _paired(module, masks).values():
        parameter.masked_fill_(~mask.to(parameter.device) & (parameter != 0), 0)


@torch.no_grad()
def check_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Check that every weight that a mask removes is exactly zero; NumericsError with tensors and counts otherwise."""
    nonzero = {
        name: int(((parameter != 0) & ~mask.to(parameter.device)).sum())
        for name, (parameter, mask) in _paired(module, masks).items()
    }
    wrong = [f"{name} ({count})" for name, count in nonzero.items() if count]
    if wrong:
        raise NumericsError(
            f"removed weights are not zero any more: {', '.join(wrong[:5])}{', ...' if len(wrong) > 5 else ''}",
            "something wrote to them after the optimizer's step; apply the masks again (prunetaylor.keep_masks)",
        )


def keep_masks(module: nn.Module, optimizer: Optimizer, masks: Mapping[str, Tensor] | None = None) -> MaskKeeper:
    """Keep the zeros of a pruned network at zero in any training loop, from now until ``remove()``.

    After each ``optimizer.step()`` the removed weights are set to zero, and so are their entries in the optimizer's
    state (momentum, second moments). Works with any optimizer of ``torch.optim`` form, several parameter groups, and
    gradient scalers. Without ``masks`` the removed weights are those of matrices and kernels that are exactly zero
    now. The handle can be used in a ``with`` statement::

        model = prunetaylor.load("runs/resnet20-1")
        optimizer = torch.optim.AdamW(model.parameters())
        prunetaylor.keep_masks(model, optimizer)

    Args:
        module: the network, possibly inside DataParallel or torch.compile.
        optimizer: holds the network's own parameters (no copies of them).
        masks: boolean tensors by parameter name, True = keep; applied at once.

    Raises:
        UsageError: nothing is zero, a mask does not fit, or the optimizer holds none of the masked parameters.
    """
    pairs = _paired(module, masks_of(module) if masks is None else masks)
    if masks is None:
        pairs = {name: (parameter, mask) for name, (parameter, mask) in pairs.items() if not bool(mask.all())}
        if not pairs:
            raise UsageError(
                "nothing to keep: no weight of the network's convolutions and linear layers is zero",
                "prune the network first, or pass the masks",
            )
    owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if pairs and not any(id(parameter) in owned for parameter, _ in pairs.values()):
        raise UsageError(
            f"the optimizer holds none of the network's {len(pairs)} masked weights",
            "make the optimizer from this network's parameters() before calling keep_masks",
        )
    return MaskKeeper(optimizer, list(pairs.values()))


class MaskKeeper:
    """The handle of :func:`keep_masks`."""

    def __init__(self, optimizer: Optimizer, pairs: list[tuple[nn.Parameter, Tensor]]) -> None:
        self._pairs = pairs
        self._factors: dict[tuple[object, ...], Tensor] = {}
        self._zero(optimizer)
        self._hook = optimizer.register_step_post_hook(self._after_step)

    def remove(self) -> None:
        """Stop keeping the masks: later steps may make removed weights nonzero."""
        self._hook.remove()

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of removed weights to zero, so that they do not count in a norm that clips gradients."""
        self._multiply([p.grad] if p.grad is not None else [] for p, _ in self._pairs)

    def __enter__(self) -> MaskKeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._zero(optimizer)

    @torch.no_grad()
    def _zero(self, optimizer: Optimizer) -> None:
        self._multiply([p, *optimizer.state.get(p, {}).values()] for p, _ in self._pairs)

    def _multiply(self, tensors_of_each: Iterable[Sequence[object]]) -> None:
        """Multiply the tensors of each masked weight that have its shape by its mask.

        There is one fused multiplication per device and type, so that a GPU is not waited for.
        """
        by_type: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}
        for index, ((_, mask), own) in enumerate(zip(self._pairs, tensors_of_each, strict=True)):
            for tensor in own:
                if isinstance(tensor, Tensor) and tensor.shape == mask.shape and _multipliable(tensor):
                    tensors, factors = by_type.setdefault((tensor.device, tensor.dtype), ([], []))
                    tensors.append(tensor)
                    factors.append(self._factor(index, mask, tensor))
        for tensors, factors in by_type.values():
            torch._foreach_mul_(tensors, factors)

    def _factor(self, index: int, mask: Tensor, like: Tensor) -> Tensor:
        """Return the mask as numbers of the tensor's type and strides (the fused multiplication asks for equal
        strides)."""
        key = (index, like.device, like.dtype, like.stride())
        factor = self._factors.get(key)
        if factor is None:
            factor = self._factors[key] = torch.empty_like(like, requires_grad=False).copy_(mask)
        return factor


def _multipliable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _paired(module: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, tuple[nn.Parameter, Tensor]]:
    """Return each mask with its parameter; UsageError if one does not fit."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    pairs = {}
    for name, mask in masks.items():
        if name not in parameters:
            raise UsageError(
                f"unknown parameter in masks: {name!r}, which the network does not have{close_match(name, parameters)}",
                "masks are by parameter name, as named_parameters() of the same module gives it",
            )
        parameter = parameters[name]
        if mask.dtype != torch.bool or mask.shape != parameter.shape:
            raise UsageError(
                f"the mask of {name} is {mask.dtype} {tuple(mask.shape)}, its weight has shape "
                f"{tuple(parameter.shape)}",
                "a mask is a boolean tensor of its weight's shape, True = keep",
            )
        pairs[name] = (parameter, mask)
    return pairs
