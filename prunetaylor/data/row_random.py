"""Random numbers for the rows of a batch, independent of which process has which rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowRandom:
    """One random number for each of some rows of a batch.

    They are drawn for the whole batch of ``batch_size`` samples, so that a row's number does not depend on the ``rows``
    asked for; by default these are all.
    """

    generator: torch.Generator
    batch_size: int
    rows: range | None = None

    def integers(self, bound: int, device: torch.device) -> Tensor:
        """Return whole numbers in [0, bound), drawn on the generator's device."""
        return self._own(
            torch.randint(bound, (self.batch_size,), generator=self.generator, device=self.generator.device), device
        )

    def uniform(self, device: torch.device) -> Tensor:
        """Return numbers in [0, 1)."""
        return self._own(torch.rand(self.batch_size, generator=self.generator, device=self.generator.device), device)

    def order(self, device: torch.device) -> Tensor:
        """Return another row of the batch for each row, as a permutation of them all."""
        return self._own(
            torch.randperm(self.batch_size, generator=self.generator, device=self.generator.device), device
        )

    def _own(self, drawn: Tensor, device: torch.device) -> Tensor:
        return (drawn if self.rows is None else drawn[self.rows.start : self.rows.stop]).to(device)
