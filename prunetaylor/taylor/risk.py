"""The risk: the mean error of a network over samples, with what its outputs are compared with, batch by batch.

Means are over samples, whatever the batches' sizes. No more of the dense network's outputs is stored than
``STORED_BYTES``: where a sample has many predictions of many classes, as a language model's, they are computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import NumericsError
from prunetaylor.core.pass_progress import report_part
from prunetaylor.data.samples import Batches, Inputs
from prunetaylor.network.state import evaluating, trainable
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.runtime.processes.group import gather_objects, world
from prunetaylor.taylor.objective import Objective, Reference, labelled_positions
from prunetaylor.taylor.passes import (
    BatchOutputs,
    Watch,
    compute_outputs,
    forward_all,
    forward_one,
    forward_own,
)

STORED_BYTES = 1 << 28
"""Bytes of the dense network's outputs for all samples that are stored; more are computed again for each batch."""


@dataclass(frozen=True)
class DenseOutputs:
    """The dense network's outputs for all samples of some batches: stored, or computed again for each batch.

    ``stored`` is (N, K) or (N, P, K) in float32; None where batches differ in shape, or it is too large.
    """

    module: nn.Module
    stored: Tensor | None = None

    @classmethod
    def compute(
        cls,
        module: nn.Module,
        batches: Batches,
        watch: Watch | None = None,
        on_batch: Callable[[BatchOutputs], None] = lambda _: None,
    ) -> DenseOutputs:
        """Pass all samples through the network; the arguments are those of :func:`forward_own`.

        ``on_batch`` is called with each batch of this process's own samples.
        """
        rows: list[Tensor] | None = []
        size = 0
        for batch in forward_own(module, batches, watch=watch):
            assert batch.outputs is not None
            on_batch(batch)
            if rows is not None:
                rows.append(batch.outputs.float())
                size += rows[-1].nbytes
                if size > STORED_BYTES // world() or rows[-1].shape[1:] != rows[0].shape[1:]:
                    rows = None
        shapes = gather_objects(None if rows is None else tuple(tuple(one.shape[1:]) for one in rows[:1]))
        if None in shapes or len({shape for shape in shapes if shape}) > 1:
            return cls(module)
        return cls(module, gather_rows(torch.cat(rows or [torch.empty(0, device=batches.device)])))

    def of(self, start: int, x: Inputs) -> Tensor:
        """Return the outputs for ``x``, the samples from index ``start`` on."""
        if self.stored is not None:
            return self.stored[start : start + len(x)]
        return forward_one(self.module, x).float()

    def some(self, batches: Batches) -> Tensor:
        """Return the outputs for all samples, or for as many of the first ones as may be stored: (M, K) predictions."""
        if self.stored is not None:
            return self.stored.flatten(0, -2)
        rows: list[Tensor] = []
        with closing(forward_all(self.module, batches)) as each:
            for batch in each:
                assert batch.outputs is not None
                rows.append(batch.outputs.float().flatten(0, -2))
                if sum(row.nbytes for row in rows) > STORED_BYTES // 2:
                    break
        return torch.cat(rows)


@dataclass(frozen=True)
class Risk:
    """The mean error of ``module`` over ``batches``; a divergence is measured from the outputs ``dense``."""

    module: nn.Module
    batches: Batches
    objective: Objective
    dense: DenseOutputs | None = None

    def reference(self, start: int, x: Inputs, targets: Tensor) -> Reference:
        """Return what the outputs for ``x`` are compared with, the samples from index ``start`` on."""
        if self.objective.kind == "task":
            return Reference(targets)
        assert self.dense is not None
        outputs = self.dense.of(start, x)
        return Reference(outputs, _counted_positions(x, outputs, targets))

    def reference_tensors(self) -> Iterator[Tensor]:
        """Yield the tensors that the references of all samples are made of, besides their inputs."""
        stored = None if self.dense is None else self.dense.stored
        if self.objective.kind == "divergence" and stored is not None:
            yield stored
        elif self.objective.kind == "divergence" and self.dense is not None:
            yield from self.dense.module.state_dict().values()
        if self.objective.kind == "task" or stored is None or stored.dim() > 2:
            yield from (targets for _, targets in self.batches)

    def values(self) -> Tensor:
        """Return the error of each sample (N,), in float64 if the device has it.

        Raises NumericsError: an error is not finite.
        """
        rows = []
        for batch in forward_own(self.module, self.batches):
            assert batch.outputs is not None
            reference = self.reference(batch.start, batch.x, batch.targets)
            rows.append(self.objective.values(batch.outputs.float(), reference))
        values = gather_rows(torch.cat(rows or [torch.empty(0, device=self.batches.device)]))
        values = values.double() if values.device.type != "mps" else values
        if not bool(torch.isfinite(values).all()):
            raise NumericsError(
                f"the network's error on {len(values)} samples is {float(values.mean())}",
                "check that the samples are normalised as in training (data.normalize)",
            )
        return values

    def value(self) -> float:
        """Return E, the mean over samples. Raises NumericsError if it is not finite."""
        return float(self.values().mean())

    def value_or_inf(self) -> float:
        """Return E, or infinity if it is not finite, so that a step which caused that is rejected."""
        try:
            return self.value()
        except NumericsError:
            return float("inf")

    def backward_batches(
        self, weights: Sequence[nn.Parameter], cuts: Sequence[int] = ()
    ) -> Iterator[tuple[int, Inputs, Tensor, Reference]]:
        """Yield (index of the first sample, x, outputs with their graph, reference) of each batch of this process's own
        samples, in evaluation mode, with gradients of ``weights``.

        For sums over groups of samples: ``cuts`` (0, ..., N) are the groups' boundaries. Batches are split there, and
        each process has whole groups.
        """
        with evaluating(self.module), trainable(weights), torch.enable_grad():
            for start, x, reference in self.own(cuts):
                edges = [0, *(c - start for c in cuts if 0 < c - start < len(x)), len(x)]
                for low, high in pairwise(edges):
                    part = x.rows(slice(low, high))
                    outputs = compute_outputs(self.module, part).float()
                    yield start + low, part, outputs, reference.rows(low, high)

    def own(self, cuts: Sequence[int] = ()) -> Iterator[tuple[int, Inputs, Reference]]:
        """Yield (index of the first sample, x, reference) of each batch of this process's own samples."""
        count = self.batches.own_count()
        for number, (start, x, targets) in enumerate(self.batches.own(cuts or None), 1):
            report_part(min(number, count), count)
            yield start, x, self.reference(start, x, targets)


def _counted_positions(x: Inputs, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Return whether each position (B, P) counts: by its class id, or without any by the inputs' attention_mask."""
    counted = labelled_positions(outputs, targets)
    mask = x.tree.get("attention_mask") if isinstance(x.tree, dict) else None
    if counted is None and isinstance(mask, Tensor) and outputs.dim() == 3 and mask.shape == outputs.shape[:2]:
        return mask != 0
    return counted
