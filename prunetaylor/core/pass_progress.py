"""Progress inside one step: a long loop over samples or rows reports its parts, and whoever shows progress listens.

The loops run deep inside a phase and know nothing of it, so the listener is a context variable: without
:func:`listen` around the loop, reports go nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[int, int], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report_part(completed: int, total: int) -> None:
    """Report that ``completed`` of ``total`` parts of a loop, such as the batches of a pass, are finished."""
    listener = _listener.get()
    if listener is not None:
        listener(completed, total)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Send the reports that are made inside the block to ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
