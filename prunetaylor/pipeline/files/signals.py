"""Signals that stop a run: SIGTERM and Ctrl-C raise an exception, if possible at a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

GRACE = 10.0
"""Seconds that a run has to reach its next checkpoint; after them it ends with the last state that was saved."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stoppable(Protocol):
    """A state store that ends the run once its state is saved."""

    stop: type[BaseException] | None
    """Raised after the next state is saved; None as long as the run goes on."""
    writing: bool
    """A state is being written."""


class Terminated(BaseException):
    """SIGTERM arrived. This is no Exception, as KeyboardInterrupt is none: no handler may take it for an error."""


def raise_terminated(number: int, frame: FrameType | None) -> None:
    """Raise Terminated, as the handler of a signal."""
    raise Terminated


@contextmanager
def first_signal_terminates(signals: Iterable[int]) -> Iterator[None]:
    """Raise Terminated inside this block on the first of ``signals``; later ones are ignored while the block ends."""

    def handle(number: int, frame: FrameType | None) -> None:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise Terminated

    before = {number: signal.getsignal(number) for number in signals}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_at_checkpoints(
    store: Stoppable,
    signals: Sequence[signal.Signals] = STOP_SIGNALS,
    *,
    second_ends: bool = True,
) -> Iterator[None]:
    """Let a signal inside this block end the run at its next checkpoint, where the state is saved.

    A second signal, or the end of ``GRACE``, ends it at once; a state that is being written is completed first.
    Without ``second_ends`` a second signal changes nothing: a cluster and the parent process may each send one.
    """

    def request_stop(number: int, frame: FrameType | None) -> None:
        error = KeyboardInterrupt if number == signal.SIGINT else Terminated
        if store.stop is not None:
            if store.writing or not second_ends:
                return
            raise error
        store.stop = error
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, GRACE)

    def end_grace(number: int, frame: FrameType | None) -> None:
        if not store.writing:
            raise store.stop or Terminated

    before: dict[int, Any] = {kind: signal.signal(kind, request_stop) for kind in signals}
    if hasattr(signal, "SIGALRM"):
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, end_grace)
    try:
        yield
    finally:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the block ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append(number)

    kinds = [signal.SIGINT, signal.SIGTERM, *([signal.SIGALRM] if hasattr(signal, "SIGALRM") else [])]
    before = {kind: signal.signal(kind, wait) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        for number in waiting:
            signal.raise_signal(number)
