"""A running sweep on stderr: a live table on a terminal; on a pipe, or with CI set, one line per finished trial."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.text import Text

from prunetaylor.core.results.sweep import Trial
from prunetaylor.report.terminal.sweep import ended, trial_table
from prunetaylor.sweep.trial.files import current_phase, read_alerts

from .console import console, one_line

_ROWS = 24


class LiveTable:
    """Shows trials while its context is open; with a negative ``verbosity`` it shows failures only."""

    def __init__(self, folder: Path, objectives: Sequence[str], verbosity: int) -> None:
        self._folder, self._objectives, self._verbosity = folder, objectives, verbosity
        self._console = console(stderr=True, soft_wrap=True)
        quiet = verbosity < 0 or bool(os.environ.get("CI")) or self._console.is_dumb_terminal
        self._live: Live | None = None
        if self._console.is_terminal and not quiet:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._states: dict[int, str] | None = None  # as they were shown last
        self._returns: dict[int, int] = {}
        self._warnings: set[str] = set()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, trials: list[Trial]) -> None:
        """Show all trials as they are now; a trial that has ended since the last call gets a line of its own."""
        self._show_warnings()
        if self._states is None:
            self._start(trials)
        assert self._states is not None
        for trial in trials:
            if trial.returns > self._returns.get(trial.number, 0) and trial.returned is not None:
                self.note(f"trial {trial.number} returns to the queue and will continue: {trial.returned}")
            self._returns[trial.number] = trial.returns
            if self._states[trial.number] != trial.state and trial.state in ("done", "failed", "stopped"):
                self._show_end(trial)
        self._states = {trial.number: trial.state for trial in trials}
        if self._live is not None:
            running = [trial.number for trial in trials if trial.state == "running"]
            phases = {number: current_phase(self._folder, number) for number in running}
            rows = max(4, min(_ROWS, self._console.height - 4))
            self._live.update(trial_table(trials, phases, self._objectives, rows), refresh=True)

    def note(self, text: str) -> None:
        """Show a note, except where the table is quiet."""
        if self._verbosity >= 0:
            self._console.print(Text(f"note: {one_line(text)}"))

    def _start(self, trials: list[Trial]) -> None:
        self._states = {trial.number: trial.state for trial in trials}
        self._returns = {trial.number: trial.returns for trial in trials}
        finished = sum(state == "done" for state in self._states.values())
        if finished:
            self.note(f"{finished} of {len(trials)} trials are already done")

    def _show_warnings(self) -> None:
        """Show the warnings about the dense network, as soon as a trial has raised them."""
        for alert in read_alerts(self._folder):
            if alert.text not in self._warnings:
                self._warnings.add(alert.text)
                self._console.print(Text(f"warning: {one_line(alert.text)}", style="bold red"))

    def _show_end(self, trial: Trial) -> None:
        if trial.state == "failed" or self._verbosity >= 0:
            style = "red" if trial.state == "failed" else ""
            self._console.print(Text(one_line(ended(trial, self._objectives)), style=style))
