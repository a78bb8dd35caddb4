"""What a solver gives that chooses the weights and moves the others at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """``masks`` (True = keep) and ``displacement`` by the names of the prunable weights.

    ``predicted_change`` of the mean error, by the solver's own quadratic model; None in other units than the error's.
    """

    masks: dict[str, Tensor]
    displacement: dict[str, Tensor]
    predicted_change: float | None
