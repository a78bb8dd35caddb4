"""Progress on stderr: bars on a terminal; on a pipe, or with CI set, one plain line per phase."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Task as Bar
from rich.table import Column
from rich.text import Text

from prunetaylor.core import progress
from prunetaylor.core.progress import Detail, PhaseProgress
from prunetaylor.core.text import duration

from ..support.options import State
from .console import console, one_line

INTERVAL = 10.0
"""Seconds between two lines of one phase."""


def reporter(state: State) -> AbstractContextManager[progress.Progress]:
    """Return the progress that suits stderr and the verbosity; of several processes only the main one shows any."""
    if not state.main:
        return nullcontext(progress.Silent())
    if state.verbosity < 0:
        return nullcontext(Warnings())
    terminal = console(stderr=True)
    if terminal.is_terminal and not os.environ.get("CI") and not terminal.is_dumb_terminal:
        return Bars(terminal, details=state.verbosity > 0)
    return nullcontext(Lines(details=state.verbosity > 0))


class Warnings(progress.Silent):
    """Shows warnings only: each once, and in red where the terminal has colours."""

    def __init__(self, terminal: Console | None = None) -> None:
        self._terminal = terminal or console(stderr=True, soft_wrap=True)
        self._warnings: set[str] = set()

    def warn(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            self._terminal.print(Text(f"warning: {one_line(text)}", style="bold red"))


class Lines(Warnings):
    """Prints lines: one when a phase starts, one for a note, and one every ten seconds of a phase with a known length.

    Each line starts with the seconds since the start. ``details`` shows the notes for -v as well.
    """

    def __init__(self, *, details: bool) -> None:
        super().__init__()
        self._console = console(stderr=True, soft_wrap=True, no_color=True)
        self._details = details
        self._start = self._last_line = time.monotonic()
        self._phase = PhaseProgress()

    def phase(self, name: str, total: int | None = None) -> None:
        self._phase = PhaseProgress(name, total)
        self._print(name)

    def step(self, detail: str = "") -> None:
        self._phase.step()
        self._print_share()

    def part(self, completed: int, total: int) -> None:
        self._phase.part(completed, total)
        self._print_share()

    def note(self, text: str) -> None:
        if self._details or not isinstance(text, Detail):
            self._print(f"note: {text}")

    def _print_share(self) -> None:
        if self._phase.total and time.monotonic() - self._last_line >= INTERVAL:
            seconds = self._phase.remaining()
            estimate = f", about {duration(seconds)} left" if seconds is not None else ""
            self._print(f"{self._phase.name}: {self._phase.share:.0%}{estimate}")

    def _print(self, text: str) -> None:
        self._last_line = time.monotonic()
        self._console.print(f"[{self._last_line - self._start:7.1f} s] {one_line(text)}")


class Bars(Warnings):
    """Shows a bar for each phase, no wider than the terminal; a finished phase keeps its line.

    ``details`` shows the notes for -v as well.
    """

    def __init__(self, terminal: Console, *, details: bool) -> None:
        super().__init__(terminal)
        self._console = terminal
        self._details = details
        self._bars = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=16),
            _Count(table_column=Column(no_wrap=True, min_width=7)),
            TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
            TextColumn(
                "{task.fields[detail]}",
                style="dim",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=terminal,
            expand=True,
        )
        self._bar: TaskID | None = None
        self._phase = PhaseProgress()
        self._detail = ""
        self._expected_end: float | None = None  # of the whole run

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        if err is None:
            self._finish()
        elif self._bar is not None:
            self._bars.stop_task(self._bar)
        self._bars.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        self._finish()
        self._phase, self._detail = PhaseProgress(name, total), ""
        self._bar = self._bars.add_task(f"{one_line(name):<26.26}", total=total, detail="")

    def step(self, detail: str = "") -> None:
        self._phase.step()
        self._detail = one_line(detail) or self._detail
        self._update()

    def part(self, completed: int, total: int) -> None:
        self._phase.part(completed, total)
        if self._phase.total:
            self._update()

    def expect(self, seconds: float) -> None:
        self._expected_end = time.monotonic() + seconds

    def note(self, text: str) -> None:
        if self._details or not isinstance(text, Detail):
            self._console.print(Text(f"note: {one_line(text)}"))

    def _update(self) -> None:
        if self._bar is None:
            return
        seconds, texts = self._phase.remaining(), []
        if seconds is not None:
            texts.append(f"{duration(seconds)} left")
        if self._expected_end is not None:
            run = max(self._expected_end - time.monotonic(), seconds or 0.0)
            if run > 1.5 * (seconds or 0.0) + 1:
                texts.append(f"run {duration(run)}")
        text = ", ".join([*texts, *([self._detail] if self._detail else [])])
        self._bars.update(self._bar, completed=self._phase.completed, detail=text)

    def _finish(self) -> None:
        """Fill the bar of the phase and stop its clock; a phase without a count has one step."""
        if self._bar is None:
            return
        bar = next(one for one in self._bars.tasks if one.id == self._bar)
        total = bar.total or max(bar.completed, 1)
        self._bars.update(self._bar, total=total, completed=total, detail="")
        self._bars.stop_task(self._bar)
        self._bar = None


class _Count(ProgressColumn):
    """Shows how many steps of all are done; nothing for a phase of unknown length."""

    def render(self, bar: Bar) -> Text:
        return Text(f"{int(bar.completed)}/{int(bar.total)}" if bar.total else "", style="progress.download")
