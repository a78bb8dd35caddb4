"""What a solver gives that chooses the weights and moves the others at once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """``masks`` (True = keep) and ``displacement`` are named like the prunable weights."""

    masks: dict[str, Tensor]
    displacement: dict[str, Tensor]
