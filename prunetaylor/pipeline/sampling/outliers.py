"""Outliers: samples that are so large that they outweigh all others together.

One sample that is scaled wrongly ruins every least-squares fit, as the largest terms dominate a sum of squares, and no
other check shows it. The size of a sample is the norm of its inputs, of its targets if they are values, and of the
inputs that it gives to each layer of the dense network. Samples are left out of calibration if each of them is far
above the ninth decile and together they outweigh the others. If their stored values alone show it, they are left out
of fine-tuning too, which the first step towards such a sample would end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunetaylor.core.results.outcome import Alert
from prunetaylor.data.samples import Inputs, Split
from prunetaylor.network.layer import Call, Layer
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.taylor.passes import Watch

FAR = 1e3
"""Times the ninth decile's energy: samples some thirty times as large as nearly all others."""
_DECILE = 0.9
_FEWEST = 3
"""Samples below which none counts as an outlier."""
_MIN_ACTIVE = 0.25
"""Share of the samples that must be non-zero at a layer: the inputs of a nearly dead one are odd anyway."""
_NAMED = 5
"""Samples that the warning names, at most."""


class Energies:
    """The squared size of each sample at each place, collected while the dense network runs."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.rows: list[Tensor] = []  # (batch, places), on the CPU
        self._layers = layers
        self._now: dict[str, Tensor] = {}

    @property
    def watch(self) -> Watch:
        """The watch that measures each layer's inputs."""
        return Watch(self._layers, self._add_call)

    def add(self, x: Inputs, targets: Tensor) -> None:
        """Add a batch that the network has run on, with its inputs and targets."""
        none = torch.zeros(len(x), dtype=torch.float64)
        target = _energy(targets, len(x)) if targets.is_floating_point() else none
        read = [self._now.get(layer.name, none) for layer in self._layers]
        self.rows.append(torch.stack([_input_energy(x), target, *read], 1))
        self._now = {}

    def all(self) -> Tensor:
        """Return the energies (N, places) of the samples of all processes."""
        none = torch.empty((0, 2 + len(self._layers)), dtype=torch.float64)
        return gather_rows(torch.cat([none, *self.rows]))

    def _add_call(self, start: int, samples: int, call: Call) -> None:
        x, name = call.inputs, call.layer.name
        if len(x) % samples == 0:  # rows that belong to no sample have no size of one
            energy = _energy(x, samples)
            self._now[name] = self._now[name] + energy if name in self._now else energy


def _input_energy(x: Inputs) -> Tensor:
    """Return the mean square of each sample's inputs (samples,), added up over its tensors of real numbers."""
    if x.tensor is not None:
        return _energy(x.tensor, len(x))
    parts = [part for part in x.tensors() if part.is_floating_point() and part.dim() and len(part) == len(x)]
    return sum((_energy(part, len(x)) for part in parts), torch.zeros(len(x), dtype=torch.float64))


def _energy(x: Tensor, samples: int) -> Tensor:
    """Return the mean square of each sample (samples,); NaN for a sample with values that are not finite."""
    rows = x.detach().float().reshape(samples, -1)
    energy = rows.square().mean(1)
    if bool(energy.isfinite().all()):
        return energy.cpu().double()
    rows = rows.cpu().double()
    return rows.square().mean(1).masked_fill(~rows.isfinite().all(1), torch.nan)


@dataclass(frozen=True)
class Outliers:
    """``samples`` are the outliers' indices; ``size`` is the size of the largest, relative to the median."""

    samples: tuple[int, ...]
    size: float

    def alert(self, left_out_of: str) -> Alert:
        """Return the warning that names the samples."""
        count, named = len(self.samples), ", ".join(map(str, self.samples[:_NAMED]))
        if count == 1:
            what = f"training sample {named} is {self.size:.2g} times as large as a typical one"
        else:
            more = f" and {count - _NAMED} more" if count > _NAMED else ""
            what = f"training samples {named}{more} are up to {self.size:.2g} times as large as a typical one"
        they = "it is" if count == 1 else "they are"
        return Alert(
            "outlier_samples",
            f"{what} and would outweigh all others; {they} left out of {left_out_of}. Check how {they} stored and "
            "scaled (indices count from 0 in the training set)",
        )


def find_outliers(energies: Tensor) -> tuple[list[int], float]:
    """Return the rows of ``energies`` (N, places) that are outliers at any place, and the size of the largest.

    The size is relative to the median.
    """
    outliers, size = torch.zeros(len(energies), dtype=torch.bool), 1.0
    for column in energies.T:
        known = column[column.isfinite() & (column > 0)].sort().values
        if len(known) < max(_FEWEST, _MIN_ACTIVE * len(energies)):
            continue
        bound = FAR * known[int(_DECILE * (len(known) - 1))]
        far = column > bound
        if bool(far.any()) and bool(column[far].sum() > known[known <= bound].sum()):
            outliers |= far
            size = max(size, float((column[far].max() / known[(len(known) - 1) // 2]).sqrt()))
    return outliers.nonzero().flatten().tolist(), size


_BATCH = 1024
"""Samples that are read at once."""


def find_stored_outliers(split: Split) -> tuple[list[int], float]:
    """Return what :func:`find_outliers` finds in the samples' stored values.

    Only floating-point numbers in memory are searched: bytes cannot be so large, and images would have to be decoded.
    """
    if not split.is_in_memory or not any(part.is_floating_point() for part in split.fetch([0])[0].tensors()):
        return [], 1.0
    rows = []
    for start in range(0, len(split), _BATCH):
        x, targets = split.fetch(range(start, min(start + _BATCH, len(split))))
        values = targets if targets.is_floating_point() else torch.zeros(len(x))
        rows.append(torch.stack([_input_energy(x), _energy(values, len(x))], 1))
    return find_outliers(torch.cat(rows))
