"""A sweep from its start to its last trial: one process leads it, and workers anywhere may help."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from prunetaylor.core.config.code import Trust
from prunetaylor.core.results.sweep import Trial
from prunetaylor.sweep.definition import Sweep
from prunetaylor.sweep.engine_context import EngineContext
from prunetaylor.sweep.engines import load_engine
from prunetaylor.sweep.folder import lead_lock, open_study
from prunetaylor.sweep.heartbeat import live_workers
from prunetaylor.sweep.study.study import Study


class SweepDisplay(Protocol):
    """Shows a running sweep to the user."""

    def show(self, trials: list[Trial]) -> None:
        """Show all trials; this is called whenever something may have changed."""

    def note(self, text: str) -> None:
        """Show in one line what happened to an engine."""


_REFRESH = 0.5  # seconds between two readings of the study
_MAINTENANCE = 2.0  # seconds between two searches for workers that are gone
_WAIT = 2.0  # seconds between two readings while only other processes run trials


def run_leader(
    sweep: Sweep, context: EngineContext, display: SweepDisplay, *, max_failures: int | None = None
) -> list[Trial]:
    """Run every trial that is missing or failed, on the sweep's engine, and return all trials as they are then.

    After ``max_failures`` failed trials no other is started. UsageError where another process leads this sweep.
    """
    with lead_lock(context.folder):
        study = open_study(context.folder, context.storage)
        study.enqueue_missing(max_failures)
        monitor = _StudyMonitor(study, display, leads=True)
        try:
            _work(sweep, context, study, monitor)
        finally:
            study.maintain()
            monitor.refresh()
            live_workers(context.folder)  # removes the files of workers that were killed
        return study.trials()


def run_worker(sweep: Sweep, context: EngineContext, display: SweepDisplay) -> list[Trial]:
    """Help with a sweep until none of its trials waits or may return to the queue; no other process need lead it."""
    study = open_study(context.folder, context.storage)
    study.return_trials_of_dead()
    monitor = _StudyMonitor(study, display, leads=False)
    try:
        _work(sweep, context, study, monitor)
    finally:
        monitor.refresh()
    return study.trials()


def _work(sweep: Sweep, context: EngineContext, study: Study, monitor: _StudyMonitor) -> None:
    """Run the trials that wait, and wait for those that other processes run: they may return to the queue."""
    engine = load_engine(sweep.engine["name"])
    while True:
        if study.waiting and not study.stop_reason:
            engine.run(context, monitor)
        monitor.maintain()
        if study.stop_reason or not study.waiting:
            if not study.running:
                return
            time.sleep(_WAIT)


class _StudyMonitor:
    """Reads the study now and then and shows it. In the leader it also returns trials of dead workers to the queue."""

    def __init__(self, study: Study, display: SweepDisplay, *, leads: bool) -> None:
        self.study, self.display, self.leads = study, display, leads
        self.next_refresh = 0.0
        self.last_maintenance = -_MAINTENANCE

    def __call__(self) -> None:
        if time.monotonic() - self.last_maintenance >= _MAINTENANCE:
            self.maintain()
        elif time.monotonic() >= self.next_refresh:
            self.refresh()

    def maintain(self) -> None:
        if self.leads:
            self.study.maintain()
        self.last_maintenance = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        self.display.show(self.study.trials())
        self.next_refresh = time.monotonic() + _REFRESH

    def note(self, text: str) -> None:
        self.display.note(text)


def make_context(
    sweep: Sweep, folder: Path, storage: str | None, trust: Trust, cache_dir: str | None = None
) -> EngineContext:
    """Return the context that the sweep's engine gets."""
    options = {key: value for key, value in sweep.engine.items() if key != "name"}
    return EngineContext(folder.resolve(), Path.cwd(), storage, options, sweep.base.config.device, trust, cache_dir)
