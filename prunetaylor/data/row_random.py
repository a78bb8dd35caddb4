"""Random numbers for the rows of a batch, whoever has which of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowRandom:
    """Random numbers for some rows of a batch, one a row: drawn for the whole batch of ``of`` samples, so that they are
    the same whoever asks for which rows. ``rows`` are those asked for; all of them by default.
    """

    generator: torch.Generator
    of: int
    rows: range | None = None

    def integers(self, bound: int, device: torch.device) -> Tensor:
        """Whole numbers in [0, bound), drawn where the generator lives."""
        return self._own(
            torch.randint(bound, (self.of,), generator=self.generator, device=self.generator.device), device
        )

    def uniform(self, device: torch.device) -> Tensor:
        """Numbers in [0, 1)."""
        return self._own(torch.rand(self.of, generator=self.generator, device=self.generator.device), device)

    def order(self, device: torch.device) -> Tensor:
        """Another row of the batch for each, all of them once."""
        return self._own(torch.randperm(self.of, generator=self.generator, device=self.generator.device), device)

    def _own(self, drawn: Tensor, device: torch.device) -> Tensor:
        return (drawn if self.rows is None else drawn[self.rows.start : self.rows.stop]).to(device)
