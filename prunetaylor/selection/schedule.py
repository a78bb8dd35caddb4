"""How far each stage goes."""

from __future__ import annotations

from math import ceil, log
from typing import Literal

STEP = 0.7
"""Share of the weights that a stage keeps, by default: the local model is re-fitted before it is asked for more."""


def sparsities(target: float, stages: Literal["auto"] | int, staged: bool) -> list[float]:
    """The sparsity after each stage, up to ``target``: each keeps the same share of what the one before left."""
    if target == 0:
        return []
    density = 1 - target
    count = stages if stages != "auto" else (max(1, ceil(log(density) / log(STEP))) if staged else 1)
    return [*(1 - density ** (k / count) for k in range(1, count)), target]
