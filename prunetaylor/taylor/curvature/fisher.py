"""The Fisher information as the gradients of single samples, the rows g_i of

    F = 1/n sum_i g_i g_i'

The error is that for a label which the network itself draws, so that the expectation of F is the Gauss-Newton matrix,
with or without labels. The empirical Fisher information, of the error as it is, is the literature's choice (Singh &
Alistarh 2020), but nearly empty where a network fits its samples, and zero for the divergence at the dense weights
(Kunstner et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunetaylor.core.errors import NumericsError
from prunetaylor.network.layer import Layer
from prunetaylor.runtime.processes.exchange import all_sum
from prunetaylor.taylor.curvature.solve import Note
from prunetaylor.taylor.curvature.tape import Tape, layer_gradients, recording, sample_cuts
from prunetaylor.taylor.memory import chunk_size
from prunetaylor.taylor.objective import SampledFactors
from prunetaylor.taylor.risk import Risk

ROW_ELEMENTS = 1 << 28
"""Elements of the rows that are in memory at one time, 1 GiB; a larger layer has a pass of its own."""


def fisher_rows(risk: Risk, layers: Sequence[Layer], seed: int) -> dict[str, Tensor]:
    """Return the rows (n, p) of each layer in float32, p its flattened weights, by parameter name.

    A layer that the error does not depend on has rows of zeros. Raises NumericsError: a row is not finite.
    """
    n = risk.batches.samples
    rows = {layer.parameter: layer.weight.new_zeros((n, layer.weight.numel()), dtype=torch.float32) for layer in layers}
    for tape, grads, start, samples in _backward(risk, layers, seed):
        for layer, low, each in layer_gradients(tape, grads, samples):
            flat = torch.vmap(layer.tensor)(each).flatten(1)
            if not bool(torch.isfinite(flat).all()):
                raise NumericsError(
                    f"{layer.parameter}: the gradient of a sample is not finite", "check the samples and the weights"
                )
            rows[layer.parameter][start + low : start + low + len(flat)] = flat
    return all_sum(rows)  # each process has zeros for the samples of the others


@dataclass
class FisherRows:
    """An iterable over (layer, rows (n, p)) in the layers' order.

    Layers whose rows fit into ``elements`` share a pass over the samples. If all of them fit, the rows are kept;
    otherwise each iteration repeats all passes.
    """

    risk: Risk
    layers: Sequence[Layer]
    seed: int
    elements: int = ROW_ELEMENTS  # divided by the current chunks
    note: Note | None = None  # receives the names of layers whose rows are zero
    single: bool = False  # and of those with single weights whose rows are zero
    _kept: dict[str, Tensor] | None = field(default=None, repr=False)

    def __iter__(self) -> Iterator[tuple[Layer, Tensor]]:
        parts = self.passes()
        for part in parts:
            rows = self._kept or fisher_rows(self.risk, part, self.seed)
            if len(parts) == 1:
                self._kept = rows
            for layer in part:
                if self.note:
                    self._name_dead(layer.parameter, rows[layer.parameter], self.note)
                yield layer, rows[layer.parameter]
            del rows  # or the next ones would be made beside them

    def _name_dead(self, name: str, rows: Tensor, note: Note) -> None:
        if not bool(rows.any()):
            note(f"{name}: the gradient is zero on all samples, so its weights look free to remove")
        elif self.single and (dead := int((~rows.any(0)).sum())):
            count = f"{dead:,} of its {rows.shape[1]:,} weights"
            note(f"{name}: the gradient is zero on all samples for {count}, whose weights look free to remove")

    def passes(self) -> list[list[Layer]]:
        """Return the layers of each pass."""
        rows = [self.risk.batches.samples * layer.weight.numel() for layer in self.layers]
        return [[self.layers[i] for i in part] for part in _passes(rows, chunk_size("rows", self.elements))]


def _passes(rows: Sequence[int], elements: int) -> list[list[int]]:
    """Return consecutive indices in groups: each has up to ``elements`` in all, or is a single index."""
    parts: list[list[int]] = []
    room = 0
    for i, need in enumerate(rows):
        if need > room or not parts:
            parts.append([])
            room = elements
        parts[-1].append(i)
        room -= need
    return parts


def _backward(
    risk: Risk, layers: Sequence[Layer], seed: int
) -> Iterator[tuple[Tape, Sequence[Tensor | None], int, int]]:
    """Yield (tape, gradients of its outputs, index of the first sample, samples) of each batch."""
    factors = SampledFactors(risk.objective, risk.batches.samples, seed)
    weights, cuts = [layer.weight for layer in layers], sample_cuts(risk, layers)
    with recording(layers) as tape:
        for start, x, outputs, reference in risk.backward_batches(weights, cuts):
            vector = factors.sample(outputs.detach(), reference, start)
            yield tape, torch.autograd.grad((outputs * vector).sum(), tape.outputs(), allow_unused=True), start, len(x)
            tape.clear()
