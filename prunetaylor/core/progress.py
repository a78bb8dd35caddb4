"""How progress leaves the engine: one small callback protocol. The engine itself never prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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


class Live(Protocol):
    """Optional facts for a display: the engine tells them to whoever has these methods."""

    def part(self, done: int, total: int) -> None:
        """So many parts of the step at work are done: batches of a pass, rows of a layer."""

    def expect(self, seconds: float) -> None:
        """The whole run will take about so long, from now on."""


@dataclass
class Where:
    """How far a phase is, in steps and parts of the one at work, and how long it will still take."""

    name: str = ""
    total: int | None = None
    steps: int = 0
    fraction: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())

    def step(self) -> None:
        self.steps, self.fraction = self.steps + 1, 0.0

    def part(self, done: int, total: int) -> None:
        # Of several passes in a step the first fills it, so that no bar goes back.
        self.fraction = max(self.fraction, min(0.95, done / max(1, total)))

    @property
    def done(self) -> float:
        """In steps, never more than there are."""
        done = self.steps + self.fraction
        return done if self.total is None else min(done, float(self.total))

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 0.0

    def left(self) -> float | None:
        """Seconds, if what is left takes as long as what is done; None as long as that says nothing."""
        taken = time.monotonic() - self.began
        return taken * (1 / self.share - 1) if taken >= 2 and self.share >= 0.02 else None


def part_of(progress: object) -> Callable[[int, int], None]:
    """What hears of parts of a step: the progress, if it wants to know."""
    return getattr(progress, "part", _deaf)


def expect(progress: object, seconds: float) -> None:
    """Tell how long the run will take, where anybody wants to know."""
    getattr(progress, "expect", _deaf)(seconds)


def _deaf(*_: float) -> None:
    """Nobody listens."""


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


class ProgressMonitor(Protocol):
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

    def part(self, done: int, total: int) -> None:
        part_of(self._shown)(done, total)

    def expect(self, seconds: float) -> None:
        expect(self._shown, seconds)

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
