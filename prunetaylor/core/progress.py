"""Progress leaves the engine through one small callback protocol; the engine itself never prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """The callbacks that the engine makes, always from the main thread."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Start a phase (``"calibrate"``, ``"stage 3 of 8"``...) of ``total`` steps, if that is known."""

    def step(self, detail: str = "") -> None:
        """Report a finished step of the phase; ``detail`` is a short live note (``"loss 0.31"``)."""

    def note(self, text: str) -> None:
        """Pass on a line for the user: a choice and its reason, a skipped layer, raised damping."""

    def warn(self, text: str) -> None:
        """Pass on a doubt about the result, which is shown even where notes are not."""

    def measured(self, step: int, values: Mapping[str, float]) -> None:
        """Pass on numbers by name, after ``step`` optimizer steps (0: before any), for trackers."""


class Detail(str):
    """A note about details: it is shown with -v only, and always written to the run's log."""


class Live(Protocol):
    """Optional callbacks for a display, made only if the progress has them."""

    def part(self, completed: int, total: int) -> None:
        """Report that ``completed`` of ``total`` parts of the current step (batches, rows of a layer) are finished."""

    def expect(self, seconds: float) -> None:
        """Announce that the whole run will take about ``seconds`` from now."""


@dataclass
class PhaseProgress:
    """The position of a phase, in steps and in parts of the current step, and an estimate of the time remaining."""

    name: str = ""
    total: int | None = None
    steps: int = 0
    fraction: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())

    def step(self) -> None:
        """Count a finished step."""
        self.steps, self.fraction = self.steps + 1, 0.0

    def part(self, completed: int, total: int) -> None:
        """Record that ``completed`` of ``total`` parts of the current step are finished."""
        # A step may make several passes; the first one fills it, so that no bar moves backwards.
        self.fraction = max(self.fraction, min(0.95, completed / max(1, total)))

    @property
    def completed(self) -> float:
        """The number of finished steps, with the finished fraction of the current one."""
        completed = self.steps + self.fraction
        return completed if self.total is None else min(completed, float(self.total))

    @property
    def share(self) -> float:
        """The finished share of the phase, in [0, 1]; 0 if the number of steps is unknown."""
        return self.completed / self.total if self.total else 0.0

    def remaining(self) -> float | None:
        """Return the seconds that remain at the pace so far; None while it is too early to tell."""
        taken = time.monotonic() - self.began
        return taken * (1 / self.share - 1) if taken >= 2 and self.share >= 0.02 else None


def part_listener(progress: object) -> Callable[[int, int], None]:
    """Return the progress's method ``part``, or a function that ignores parts if it has none."""
    return getattr(progress, "part", _ignore)


def expect(progress: object, seconds: float) -> None:
    """Tell the progress how long the run will take, if it has a method for that."""
    getattr(progress, "expect", _ignore)(seconds)


def _ignore(*_: float) -> None:
    pass


class Silent:
    """A progress that shows nothing."""

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
    """A callback that hears the value of each stage and epoch, and may raise to end the run there."""

    def __call__(self, what: Literal["stage", "epoch"], number: int, value: float) -> None:
        """Hear the value of the stage or epoch ``number``, counted from 1.

        A stage's value is the change of the error since the dense network on held-out calibration samples; an epoch's
        is the metric on the validation samples.
        """


def no_monitor(what: Literal["stage", "epoch"], number: int, value: float) -> None:
    """Ignore what a stage or epoch came to."""


class Log(Protocol):
    """A record of a run's events, such as its folder keeps."""

    def log(self, event: str, **fields: Any) -> None:
        """Append an event with its fields."""


class Measured(Protocol):
    """A receiver of numbers, such as the trackers."""

    def measured(self, step: int, values: Mapping[str, float]) -> None: ...


class Logged:
    """A progress that passes everything on, writes it to the run's log, and gives numbers to trackers."""

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

    def part(self, completed: int, total: int) -> None:
        part_listener(self._shown)(completed, total)

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
    """Yield the items, and report a step after each."""
    for item in items:
        yield item
        progress.step()
