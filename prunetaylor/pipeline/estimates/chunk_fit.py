"""The largest chunks under which every phase of a run fits in memory.

Chunks are halved one after another, each time where that helps most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace

from prunetaylor.taylor.memory import ChunkDivisors, use_chunks
from prunetaylor.taylor.sizes import Phase

Phases = Callable[[], Iterable[Phase]]
"""Gives the phases of a run under the current chunks."""
_SMALLEST = 1 << 14  # the largest divisor of a chunk


def fit_chunks(phases: Phases, limit: int | None) -> tuple[ChunkDivisors, Phase]:
    """Return the largest chunks found under which all phases fit ``limit``, else the smallest; and the largest
    phase.
    """
    chosen = ChunkDivisors()
    while limit is not None and (over := _over(phases, chosen, limit)) > 0:
        smaller = (_halved(phases, chosen, field.name, limit, over) for field in fields(chosen))
        best = min((one for one in smaller if one is not None), key=lambda one: one[0], default=None)
        if best is None:
            break
        chosen = best[1]
    with use_chunks(chosen):
        return chosen, max(phases(), key=lambda phase: phase.total)


def _halved(
    phases: Phases, chosen: ChunkDivisors, name: str, limit: int, over: int
) -> tuple[int, ChunkDivisors] | None:
    """Return (bytes over the limit, chunks) of the first halving of a chunk that helps, or None."""
    by = getattr(chosen, name)
    while by < _SMALLEST:
        by *= 2
        smaller = replace(chosen, **{name: by})
        excess = _over(phases, smaller, limit)
        if excess < over:
            return excess, smaller
    return None


def _over(phases: Phases, chosen: ChunkDivisors, limit: int) -> int:
    """Return the sum of all phases' bytes over the limit, so that halving helps if any phase shrinks."""
    with use_chunks(chosen):
        return sum(max(0, phase.total - limit) for phase in phases())
