"""SIGTERM and Ctrl-C: what they raise, and when."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunetaylor.pipeline.files.resume import FolderStateStore, FollowerStateStore

GRACE = 10.0
"""Seconds for the next moment at which a state can be kept; after them the last one must do."""


class Terminated(BaseException):
    """SIGTERM came. Like KeyboardInterrupt, not an Exception: nobody may take it for an error of theirs."""


def terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def at_moments(
    store: FolderStateStore | FollowerStateStore, signals: Sequence[signal.Signals] = SIGNALS, *, hurry: bool = True
) -> Iterator[None]:
    """Inside, a signal ends the run at its next moment, with its state kept; a second one, or ``GRACE``, at once.

    A state that is being written is written to its end first: half of one is of no use. Without ``hurry`` a second
    signal changes nothing, as a cluster and whoever supervises the process for it may each send one.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        asked = KeyboardInterrupt if number == signal.SIGINT else Terminated
        if store.stop is not None:
            if store.writing or not hurry:
                return
            raise asked
        store.stop = asked
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    def late(number: int, frame: FrameType | None) -> None:
        if not store.writing:
            raise store.stop or Terminated

    before: dict[int, Any] = {kind: signal.signal(kind, ask) for kind in signals}
    if hasattr(signal, "SIGALRM"):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, late)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for kind, handler in before.items():
            signal.signal(kind, handler)
