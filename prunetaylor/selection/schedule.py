"""How far each stage goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Literal

STEP = 0.7
"""Share of the weights that a stage keeps, by default: the local model is re-fitted before it is asked for more."""


def sparsities(target: float, stages: Literal["auto"] | int | Sequence[float], staged: bool) -> list[float]:
    """The sparsity after each stage, up to ``target``.

    A list is taken as it is, up to the target, which ends it; otherwise each stage keeps the same share of what the one
    before left.
    """
    if target == 0:
        return []
    if not isinstance(stages, str | int):
        return [*(level for level in stages if level < target), target]
    density = 1 - target
    count = stages if stages != "auto" else (max(1, ceil(log(density) / log(STEP))) if staged else 1)
    return [*(1 - density ** (k / count) for k in range(1, count)), target]


@dataclass
class Fixed:
    """Stages that were settled beforehand: how they turn out changes nothing."""

    levels: Sequence[float]
    damping: float
    _done: int = 0

    def propose(self, now: float, change: Callable[[float], float]) -> float:
        """The next of the levels."""
        self._done += 1
        return self.levels[self._done - 1]

    def judge(self, now: float, then: float, predicted: float, measured: float, noise: float) -> bool:
        return True
