"""How progress leaves the engine: one small callback protocol. The engine itself never prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """What the engine tells whoever listens. Every method may be called from the main thread only."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A phase starts (``"calibrate"``, ``"stage 3 of 8"``...) with ``total`` steps to come, if known."""

    def step(self, detail: str = "") -> None:
        """One step of the phase is done; ``detail`` is a short live note (``"loss 0.31"``)."""

    def note(self, text: str) -> None:
        """Something the user should read: a choice and its reason, a layer skipped, damping raised."""

    def warn(self, text: str) -> None:
        """A doubt about the result that the user must not miss, shown even where notes are not."""

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name, after so many optimiser steps (0: before any): for trackers."""


class Detail(str):
    """A note that matters to those only who look closely: it is shown with -v, and always kept in the run's log."""


class Silent:
    """Nobody listens."""

    def warn(self, text: str) -> None:
        pass

    def phase(self, name: str, total: int | None = None) -> None:
        pass

    def step(self, detail: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        pass


class Watch(Protocol):
    """Told what each stage and epoch came to; raises to end the run there."""

    def __call__(self, what: Literal["stage", "epoch"], number: int, value: float) -> None:
        """``number`` from 1. A stage's value is the error's change since the dense network on held-out calibration
        samples, an epoch's the metric on the validation samples."""


def unwatched(what: Literal["stage", "epoch"], number: int, value: float) -> None:
    """Nobody wants to know."""


class Log(Protocol):
    """What keeps a run's events, such as its folder."""

    def log(self, event: str, **fields: Any) -> None: ...


class Measured(Protocol):
    """What takes numbers, such as trackers."""

    def measured(self, step: int, values: Mapping[str, float]) -> None: ...


class Logged:
    """Passes progress on, keeps it in the run's log, and gives numbers to trackers."""

    def __init__(self, shown: Progress, folder: Log | None) -> None:
        self._shown = shown
        self._folder = folder
        self.notes: list[str] = []
        self.trackers: Measured | None = None

    def phase(self, name: str, total: int | None = None) -> None:
        self._shown.phase(name, total)
        if self._folder is not None:
            self._folder.log("phase", name=name, steps=total)

    def step(self, detail: str = "") -> None:
        self._shown.step(detail)

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._shown.note(text)
        if self._folder is not None:
            self._folder.log("note", text=text)

    def warn(self, text: str) -> None:
        self._shown.warn(text)
        if self._folder is not None:
            self._folder.log("warning", text=text)

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        self._shown.measured(step, values)
        if self._folder is not None:
            self._folder.log("measured", step=step, **values)
        if self.trackers is not None:
            self.trackers.measured(step, values)


def steps(items: Iterable[T], progress: Progress) -> Iterator[T]:
    """The items, one ``progress.step()`` after each."""
    for item in items:
        yield item
        progress.step()
