"""The state that a training yields after each optimiser step."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class TrainState:
    """The state after an optimiser step. ``epoch`` and ``step`` count from 1, ``steps`` are those of all epochs."""

    epoch: int
    step: int
    steps: int
    lr: float  # of the step just done
    epoch_done: bool
    samples_per_second: float  # of this epoch so far, what the caller does between steps left out
    seconds_left: float  # for the steps to come, at the rate of this epoch
    loss_tensor: Tensor = field(repr=False)  # scalar on the device
    _epoch_sum: Tensor = field(repr=False)
    _epoch_samples: int = field(repr=False)

    @property
    def loss(self) -> float:
        """The mean training loss of this step's samples. Reading it waits for the device."""
        return float(self.loss_tensor)

    @property
    def epoch_loss(self) -> float:
        """The mean training loss over the samples of this epoch so far. Reading it waits for the device."""
        return float(self._epoch_sum) / self._epoch_samples
