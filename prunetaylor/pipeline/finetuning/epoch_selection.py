"""The choice of the epoch whose weights a run ends with.

Only weights with the sparsity asked for are a result: those before training and after each epoch, the best by the
metric on the validation samples. Until a gradual schedule has reached that sparsity there are none; the last epoch is
then the fallback if training fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Candidate:
    """Weights that a run may end with.

    Attributes:
        epoch: the number of epochs behind them; 0 before training.
        gain: the validation metric, with the sign that makes more better.
        weights: the network's state.
    """

    epoch: int
    gain: float
    weights: Mapping[str, Tensor]


@dataclass(frozen=True)
class Fallback:
    """The weights of the last epoch that had fewer zeros than asked for, its masks, and the stages behind it."""

    epoch: int
    weights: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    stages: int


class EpochSelector:
    """Keeps the best of the weights that it is offered.

    Weights are passed as functions, which are called only if the weights are worth copying.
    """

    def __init__(self, sign: int) -> None:
        self._sign = float(sign)
        self.best: Candidate | None = None
        self.fallback: Fallback | None = None

    def offer(self, epoch: int, value: float, weights: Callable[[], Mapping[str, Tensor]]) -> None:
        """Consider weights with the sparsity asked for, whose metric on the validation samples is ``value``."""
        gain = self._sign * value
        # An epoch as good as the start is preferred to it: it may be surer of its answers.
        better = self.best is None or gain > self.best.gain or (gain == self.best.gain and self.best.epoch == 0)
        if better:
            self.best, self.fallback = Candidate(epoch, gain, weights()), None

    def offer_incomplete(
        self, epoch: int, weights: Callable[[], Mapping[str, Tensor]], masks: Mapping[str, Tensor], stages: int
    ) -> None:
        """Remember weights with a lower sparsity than asked for, in case that nothing better follows."""
        self.fallback = Fallback(epoch, weights(), dict(masks), stages)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": None if self.best is None else vars(self.best),
            "fallback": None if self.fallback is None else vars(self.fallback),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        best, fallback = state["best"], state["fallback"]
        self.best = None if best is None else Candidate(**best)
        self.fallback = None if fallback is None else Fallback(**fallback)
