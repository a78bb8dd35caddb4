"""The chunks in which a run works, chosen before it starts so that it fits into memory, and what frees memory.

Code that works in chunks asks :func:`chunk_size` when it runs. ``pipeline/estimates/memory.py`` chooses the divisors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class ChunkDivisors:
    """The factors by which chunks are smaller than usual; 1 is the usual size. Results differ by rounding only.

    Each module has its usual amount beside its code, and divides it by one of these fields. One of them does change the
    result: batch norms train on the statistics of the samples that they see at once, which ``training`` reduces.
    """

    batch: int = 1  # calibration samples in a batch
    systems: int = 1  # matrices that are factorised together, columns that are taken together
    rows: int = 1  # gradients of single samples; fewer cost more passes
    kept: int = 1  # outputs that least squares keeps so as not to compute them again
    training: int = 1  # samples that gradients are taken of together; a step is of as many as before


Chunk = Literal["systems", "rows", "kept"]
"""The chunks that are counted in elements, or for ``kept`` in bytes."""

_divisors = ContextVar("divisors", default=ChunkDivisors())  # noqa: B039 frozen
_recorded: ContextVar[dict[Chunk, int] | None] = ContextVar("recorded", default=None)


def current_chunks() -> ChunkDivisors:
    """Return the current divisors; all are 1 outside of :func:`use_chunks`."""
    return _divisors.get()


def chunk_size(chunk: Chunk, usual: int) -> int:
    """Return ``usual`` divided by the chunk's current divisor."""
    recorded = _recorded.get()
    if recorded is not None:
        recorded[chunk] = max(usual, recorded.get(chunk, 0))
    return int(usual // getattr(current_chunks(), chunk))


@contextmanager
def use_chunks(chosen: ChunkDivisors) -> Iterator[None]:
    """Use the divisors ``chosen`` inside the block."""
    token = _divisors.set(chosen)
    try:
        yield
    finally:
        _divisors.reset(token)


@contextmanager
def record_chunks() -> Iterator[dict[Chunk, int]]:
    """Yield a dictionary that receives the largest usual size of each chunk that is asked for inside the block."""
    recorded: dict[Chunk, int] = {}
    token = _recorded.set(recorded)
    try:
        yield recorded
    finally:
        _recorded.reset(token)


def release() -> None:
    """Return freed memory to the system: the C library keeps it otherwise, and the next phase's tensors add to it."""
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; torch has a class for that on CUDA only."""
    messages = ("not enough memory", "can't allocate memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(one in str(error) for one in messages)
