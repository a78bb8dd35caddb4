"""Samples that dwarf the rest: one that is scaled wrongly ruins every least-squares fit, and nothing else shows it.

A sum of squares belongs to whoever is largest. The size of a sample is the norm of what a layer reads of it in the
dense network (of the network's inputs, and of targets that are values, too). Some samples are left out of calibration
where each of them is far above the ninth decile and all of them together outweigh the others. Samples that show it as
they are stored are left out of all training too, whose first step towards one of them ends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunetaylor.core.results.outcome import Alert
from prunetaylor.data.samples import Split
from prunetaylor.network.layer import Prunable
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.taylor.passes import ForwardHook

FAR = 1e3
"""Times the ninth decile's energy: samples some thirty times as large as nearly all others."""
_DECILE = 0.9
_FEWEST = 3
"""Samples of which none can be told to be unusual."""
_REACHED = 0.25
"""Share of the samples that a layer must read something of: what a nearly dead one reads is odd anyway."""
_NAMED = 5
"""Samples that are named, at most."""


class Energies:
    """The squared size of each sample at each place, collected while the dense network runs."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: list[Tensor] = []  # (batch, places), on the CPU
        self._places = [m for m in module.modules() if isinstance(m, Prunable)]
        self._now: dict[nn.Module, Tensor] = {}

    @property
    def watch(self) -> Mapping[nn.Module, ForwardHook]:
        return {module: self._watcher(module) for module in self._places}

    def add(self, x: Tensor, targets: Tensor) -> None:
        """A batch is done: its inputs (B, ...) and targets."""
        none = torch.zeros(len(x), dtype=torch.float64)
        wanted = _energy(targets, len(x)) if targets.is_floating_point() else none
        read = [self._now.get(module, none) for module in self._places]
        self.rows.append(torch.stack([_energy(x, len(x)), wanted, *read], 1))
        self._now = {}

    def all(self) -> Tensor:
        """Of all processes' samples, (N, places)."""
        none = torch.empty((0, 2 + len(self._places)), dtype=torch.float64)
        return gather_rows(torch.cat([none, *self.rows]))

    def _watcher(self, module: nn.Module) -> ForwardHook:
        def look(start: int, samples: int, x: Tensor, y: Tensor) -> None:
            if len(x) % samples == 0:  # rows that belong to no sample have no size of one
                energy = _energy(x, samples)
                self._now[module] = self._now[module] + energy if module in self._now else energy

        return look


def _energy(x: Tensor, samples: int) -> Tensor:
    """The mean square of each sample (samples,); not a number for one that is not finite itself: others refuse it."""
    rows = x.detach().float().reshape(samples, -1)
    energy = rows.square().mean(1)
    if bool(energy.isfinite().all()):
        return energy.cpu().double()
    rows = rows.cpu().double()
    return rows.square().mean(1).masked_fill(~rows.isfinite().all(1), torch.nan)


@dataclass(frozen=True)
class Outliers:
    """``samples``: their indices; ``size``: how many times as large the largest is as the others' median."""

    samples: tuple[int, ...]
    size: float

    def alert(self, left_out_of: str) -> Alert:
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


def find(energies: Tensor) -> tuple[list[int], float]:
    """Rows of (N, places) that dwarf the rest at any place; how many times as large the largest is as the median."""
    found, size = torch.zeros(len(energies), dtype=torch.bool), 1.0
    for column in energies.T:
        known = column[column.isfinite() & (column > 0)].sort().values
        if len(known) < max(_FEWEST, _REACHED * len(energies)):
            continue
        bound = FAR * known[int(_DECILE * (len(known) - 1))]
        far = column > bound
        if bool(far.any()) and bool(column[far].sum() > known[known <= bound].sum()):
            found |= far
            size = max(size, float((column[far].max() / known[(len(known) - 1) // 2]).sqrt()))
    return found.nonzero().flatten().tolist(), size


_TOGETHER = 1024
"""Samples that are looked at together."""


def stored(split: Split) -> tuple[list[int], float]:
    """Samples that dwarf the rest by their values as they are stored, and by how much, as ``find`` returns them.

    Only numbers in memory are looked at: bytes cannot be so large, and images would have to be decoded.
    """
    if not split.is_in_memory or not split.fetch([0])[0].is_floating_point():
        return [], 1.0
    rows = []
    for start in range(0, len(split), _TOGETHER):
        x, targets = split.fetch(range(start, min(start + _TOGETHER, len(split))))
        wanted = targets if targets.is_floating_point() else torch.zeros(len(x))
        rows.append(torch.stack([_energy(x, len(x)), _energy(wanted, len(x))], 1))
    return find(torch.cat(rows))
