"""How far a long step is: loops over samples and rows say it where they run, and whoever shows progress hears it.

The loops are deep inside of what a phase does, and belong to none: a beat is heard by the listener that is set around
them (:func:`heard`), or by nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[int, int], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def beat(done: int, total: int) -> None:
    """``done`` parts of ``total`` of a pass, or another long loop, are done."""
    listener = _listener.get()
    if listener is not None:
        listener(done, total)


@contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """``listener`` hears the beats inside."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
