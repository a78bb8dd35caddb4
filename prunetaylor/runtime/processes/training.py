"""Train on several processes, which share gradients and batch-norm statistics.

Each process has its rows of a batch (``Batches.shares``) and computes their part of the whole batch's mean loss,

    loss = mean over own rows * share.weight          share.weight: own rows / rows of the whole batch

before the backward pass. Gradients then add up to those of one process, however uneven the shares are; weighting them
afterwards would not do, as what goes through a batch norm's statistics reaches the other processes' rows. A process
without rows calls backward too, on ``outputs.sum() * 0``: the others wait for it in every batch norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunetaylor.runtime.operators import override_functions
from prunetaylor.runtime.processes.exchange import reduce_in_place
from prunetaylor.runtime.processes.group import exchanging, gather_objects, world


@torch.no_grad()
def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each ``p.grad`` by its sum over the processes: the same bits on all of them.

    A gradient that some processes lack counts as zero there; one that all lack stays None, as for one process. Not
    DistributedDataParallel: it averages with equal weights, needs every gradient each time or looks for those that are
    missing, and would wrap a network whose layers are known by name here. What it does better, sending while the
    backward pass still runs, is left out.
    """
    trained = [p for p in parameters if p.requires_grad]
    if world() == 1 or not trained:
        return
    known = [any(flags) for flags in zip(*gather_objects(bytes(p.grad is not None for p in trained)), strict=True)]
    moved = [p for p, has_gradient in zip(trained, known, strict=True) if has_gradient]
    for p in moved:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    with exchanging():
        reduce_in_place([p.grad for p in moved if p.grad is not None])


def waits_within(module: nn.Module) -> bool:
    """Return True if several processes that train ``module`` wait for one another in the middle of a pass."""
    return any(isinstance(m, _BatchNorm) for m in module.modules())


@contextmanager
def synced_batch_norm(module: nn.Module) -> Iterator[None]:
    """Let every batch norm of ``module`` in training mode use the statistics of the whole batch, over all processes.

    That holds in both passes: outputs, gradients and running statistics are those of one process. nn.SyncBatchNorm runs
    on GPUs only; one that is in the network already is not changed. All processes must call the same norms in the same
    order, those without rows with tensors (0, C, ...).
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
    if world() == 1 or not norms:
        yield
        return
    own = {m: vars(m)["forward"] for m in norms if "forward" in vars(m)}  # another replacement
    for m in norms:
        m.forward = _SyncedForward(m, m.forward)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        for m in norms:
            del m.forward
        for m, forward in own.items():
            m.forward = forward  # type: ignore[method-assign]


class _SyncedForward:
    """A batch norm's own forward method, with synchronised arithmetic while it trains."""

    def __init__(self, norm: nn.Module, forward: Callable[[Tensor], Tensor]) -> None:
        self._norm, self._forward = norm, forward

    def __call__(self, x: Tensor) -> Tensor:
        if not self._norm.training:
            return self._forward(x)
        with override_functions({nn.functional.batch_norm: _synced_batch_norm}):
            return self._forward(x)


def _synced_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Compute ``torch.nn.functional.batch_norm`` with the statistics of all processes."""
    if not training:
        return nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    mean, variance, count = _statistics(input.detach())
    if count < 2:
        raise ValueError(f"Expected more than 1 value per channel when training, got {count} in all processes together")
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var), momentum)
    wide = torch.promote_types(input.dtype, torch.float32)
    scale = (variance + eps).rsqrt().to(wide)
    normal: Tensor = _SyncedNormalisation.apply(input.to(wide), mean.to(wide), scale, count)  # type: ignore[no-untyped-call]
    shape = _along_channels(normal)
    if weight is not None:
        normal = normal * weight.to(wide).view(shape)
    if bias is not None:
        normal = normal + bias.to(wide).view(shape)
    return normal.to(input.dtype)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return mean and variance (C,) over all processes in float64, and the number of values of a channel.

    They combine each process's own by their counts (Chan, Golub & LeVeque 1983).
    """
    channels, dims = x.shape[1], [0, *range(2, x.dim())]
    count = x.numel() // channels
    own = torch.zeros(1 + 2 * channels, dtype=torch.float64, device=x.device)
    if count:
        variance, mean = torch.var_mean(x.float() if x.dtype.itemsize < 4 else x, dims, correction=0)
        own[0], own[1 : channels + 1], own[channels + 1 :] = count, mean, variance
    every = [torch.empty_like(own) for _ in range(world())]
    with exchanging():
        dist.all_gather(every, own)
    counts, means, variances = torch.split(torch.stack(every), [1, channels, channels], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total.clamp_min(1)
    variance = (counts * (variances + (means - mean).square())).sum(0) / total.clamp_min(1)
    return mean, variance, int(total)


def _along_channels(x: Tensor) -> list[int]:
    return [1, -1, *[1] * (x.dim() - 2)]


class _SyncedNormalisation(torch.autograd.Function):
    """Compute (x - mean) / standard deviation, both functions of all processes' x, with gradients through both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, scale: Tensor, count: int) -> Tensor:
        shape = _along_channels(x)
        normal = (x - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal, scale)
        ctx.count = count
        return normal

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        normal, scale = ctx.saved_tensors
        (g,) = grads
        dims, shape = [0, *range(2, g.dim())], _along_channels(g)
        sums = torch.stack([g.sum(dims), (g * normal).sum(dims)]).double()
        with exchanging():
            dist.all_reduce(sums)
        along, across = (sums / ctx.count).to(g.dtype)
        return scale.view(shape) * (g - along.view(shape) - normal * across.view(shape)), None, None, None
