"""A sweep from its start to its last trial: one process leads, workers anywhere help."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from prunetaylor.core.config.code import Trust
from prunetaylor.core.results.sweep import Trial
from prunetaylor.sweep.definition import Sweep
from prunetaylor.sweep.engine_context import EngineContext
from prunetaylor.sweep.engines import load_engine
from prunetaylor.sweep.folder import leading, open_study
from prunetaylor.sweep.heartbeat import others
from prunetaylor.sweep.study.study import Study


class Show(Protocol):
    """Whoever is shown a sweep."""

    def show(self, trials: list[Trial]) -> None:
        """All trials, whenever something may have changed."""

    def note(self, text: str) -> None:
        """What happened to an engine, in one line."""


_EVERY = 0.5  # seconds between two looks at the study
_TEND = 2.0  # seconds between two looks for workers that are gone
_ELSEWHERE = 2.0  # seconds between two looks while only others work


def lead(sweep: Sweep, crew: EngineContext, show: Show, *, max_failures: int | None = None) -> list[Trial]:
    """Run every trial that is missing or failed, on the sweep's engine; all trials, as they are then.

    After ``max_failures`` failed trials no other is started. UsageError where another process leads this sweep.
    """
    with leading(crew.folder):
        study = open_study(crew.folder, crew.storage)
        study.fill(max_failures)
        look = _Look(study, show, leads=True)
        try:
            _work(sweep, crew, study, look)
        finally:
            study.tend()
            look.now()
            others(crew.folder)  # takes away what workers left that were killed
        return study.trials()


def join(sweep: Sweep, crew: EngineContext, show: Show) -> list[Trial]:
    """Help a sweep that another process leads, or that nobody leads any more, until no trial waits or may come back."""
    study = open_study(crew.folder, crew.storage)
    study.reap()
    look = _Look(study, show, leads=False)
    try:
        _work(sweep, crew, study, look)
    finally:
        look.now()
    return study.trials()


def _work(sweep: Sweep, crew: EngineContext, study: Study, look: _Look) -> None:
    """Run what waits, and wait for what others run: it may be given back."""
    engine = load_engine(sweep.engine["name"])
    while True:
        if study.waiting and not study.stopping:
            engine.run(crew, look)
        look.tend()
        if study.stopping or not study.waiting:
            if not study.running:
                return
            time.sleep(_ELSEWHERE)


class _Look:
    """Looks at the study now and then, and shows it. Whoever leads takes care of trials that were given back."""

    def __init__(self, study: Study, show: Show, *, leads: bool) -> None:
        self.study, self.show, self.leads = study, show, leads
        self.next = 0.0
        self.tended = -_TEND

    def __call__(self) -> None:
        if time.monotonic() - self.tended >= _TEND:
            self.tend()
        elif time.monotonic() >= self.next:
            self.now()

    def tend(self) -> None:
        if self.leads:
            self.study.tend()
        self.tended = time.monotonic()
        self.now()

    def now(self) -> None:
        self.show.show(self.study.trials())
        self.next = time.monotonic() + _EVERY

    def note(self, text: str) -> None:
        self.show.note(text)


def crew_of(sweep: Sweep, folder: Path, storage: str | None, trust: Trust) -> EngineContext:
    """What the sweep's engine is told."""
    options = {key: value for key, value in sweep.engine.items() if key != "name"}
    return EngineContext(folder.resolve(), Path.cwd(), storage, options, sweep.base.config.device, trust)
