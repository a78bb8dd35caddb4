"""How progress leaves the engine: one small callback protocol. The engine itself never prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What the engine tells whoever listens. Every method may be called from the main thread only."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A phase starts (``"calibrate"``, ``"stage 3 of 8"``...) with ``total`` steps to come, if known."""

    def step(self, detail: str = "") -> None:
        """One step of the phase is done; ``detail`` is a short live note (``"loss 0.31"``)."""

    def note(self, text: str) -> None:
        """Something the user should read: a choice and its reason, a layer skipped, damping raised."""

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after so many optimiser steps (0: before any): for trackers."""


class Silent:
    """Nobody listens."""

    def phase(self, name: str, total: int | None = None) -> None:
        pass

    def step(self, detail: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        pass


def steps(items: Iterable[T], progress: Progress) -> Iterator[T]:
    """The items, one ``progress.step()`` after each."""
    for item in items:
        yield item
        progress.step()
