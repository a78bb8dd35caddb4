"""Batch-norm statistics that fit the pruned network.

The stored statistics come from training images as training saw them, cropped and flipped; the calibration images are
clean. Replacing the stored statistics by those of clean images costs points on the dense network already. So they are
corrected by what pruning changed, measured dense and pruned on the same images:

    mean' = mean + (m_pruned - m_dense),        var' = var (v_pruned + t) / (v_dense + t),     t = 1 % of var + eps

The floor t keeps the ratio in bounds on dead channels, whose variances are zero over zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunetaylor.data.samples import Batches
from prunetaylor.pruning.interfaces import Repair, RepairContext
from prunetaylor.runtime.processes.exchange import all_sum, sum_numbers
from prunetaylor.taylor.curvature.gram import accumulate_type
from prunetaylor.taylor.passes import ForwardHook, Watch, forward_own

_FLOOR = 0.01


class BatchNormCorrection(Repair):
    """The correction of running statistics by what pruning changed."""

    summary = "batch-norm statistics only, corrected by what pruning changed"
    at = "acceptance"
    needs_batch_norms = True

    def apply(self, context: RepairContext) -> Iterator[str]:
        """Correct the batch norms; the names that are yielded are theirs."""
        dense = context.target.module
        yield from correct(context.network.module, dense, dense.state_dict(), context.batches)


def norms(module: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch norms with stored statistics, by name."""
    return {n: m for n, m in module.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


@torch.no_grad()
def correct(module: nn.Module, dense: nn.Module, dense_state: Mapping[str, Tensor], batches: Batches) -> Iterator[str]:
    """Correct one batch norm after another, in the order in which they run, in place; yields the name of each.

    Later ones are measured behind earlier ones that are already right.
    """
    before = _statistics(dense, norms(dense), batches)
    current = norms(module)
    for name, (mean, variance, calls) in before.items():
        norm = current[name]
        assert norm.running_mean is not None
        assert norm.running_var is not None
        # A norm that a pass calls more than once is measured over all its calls.
        until = norm if calls == 1 else None
        now_mean, now_variance, _ = _statistics(module, {name: norm}, batches, until)[name]
        stored = dense_state[f"{name}.running_var"].to(variance)
        floor = _FLOOR * stored + norm.eps
        norm.running_mean.copy_(dense_state[f"{name}.running_mean"].to(mean) + now_mean - mean)
        norm.running_var.copy_(stored * (now_variance + floor) / (variance + floor))
        yield name


def _statistics(
    module: nn.Module, watched: Mapping[str, _BatchNorm], batches: Batches, until: nn.Module | None = None
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return mean and variance (C,) of each batch norm's inputs and its calls a pass, in the order in which they
    run."""
    sums: dict[str, Tensor] = {}  # (3, C): of x, of its squares; its values and the norm's calls

    def watcher(name: str) -> ForwardHook:
        def add(start: int, samples: int, x: Tensor, y: Tensor) -> None:
            dims = [0, *range(2, x.dim())]
            wide = accumulate_type(x.device)
            # Products in float32, sums over batches in the wide type.
            statistics = torch.stack([x.float().sum(dims).to(wide), x.float().square().sum(dims).to(wide)])
            count = statistics.new_tensor([[x.numel() // x.shape[1]], [1]]).expand(2, statistics.shape[1])
            statistics = torch.cat([statistics, count])
            sums[name] = sums[name] + statistics if name in sums else statistics

        return add

    passes = 0
    watch = Watch(modules={norm: watcher(name) for name, norm in watched.items()})
    for _ in forward_own(module, batches, watch=watch, until=until):
        passes += 1
    (passes,) = map(int, sum_numbers(passes))
    statistics = {}
    for name, (total, squares, values, calls) in all_sum(sums).items():
        mean = total / values
        statistics[name] = (mean, (squares / values - mean.square()).clamp_min(0), int(calls[0]) / passes)
    return statistics
