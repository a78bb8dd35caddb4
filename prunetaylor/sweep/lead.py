"""A sweep from its start to its last trial: one process leads, workers anywhere help."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from prunetaylor import registry
from prunetaylor.config.code import Trust
from prunetaylor.outcome import Trial
from prunetaylor.sweep.alive import others
from prunetaylor.sweep.crew import Crew
from prunetaylor.sweep.definition import Sweep
from prunetaylor.sweep.folder import leading, open_study
from prunetaylor.sweep.study import Study

Show = Callable[[list[Trial]], None]
"""Is given all trials whenever something may have changed."""
_EVERY = 0.5  # seconds between two looks at the study
_ELSEWHERE = 2.0  # the same while only others work


def lead(sweep: Sweep, crew: Crew, show: Show, *, max_failures: int | None = None) -> list[Trial]:
    """Run every trial that is missing or failed, on the sweep's engine; all trials, as they are then.

    After ``max_failures`` failed trials no other is started. UsageError where another process leads this sweep.
    """
    with leading(crew.folder):
        study = open_study(crew.folder, crew.storage)
        waiting = study.fill(max_failures)
        look = _Look(study, show)
        if waiting:
            registry.load("sweep/engines", sweep.engine["name"]).run(crew, look)
        while study.running:  # on other machines
            study.reap()
            look()
            time.sleep(_ELSEWHERE)
        look.now()
        others(crew.folder)  # takes away what workers left that were killed
        return study.trials()


def join(sweep: Sweep, crew: Crew, show: Show) -> list[Trial]:
    """Help a sweep that another process leads, or that nobody leads any more, until no trial waits."""
    study = open_study(crew.folder, crew.storage)
    study.reap()
    look = _Look(study, show)
    registry.load("sweep/engines", sweep.engine["name"]).run(crew, look)
    look.now()
    return study.trials()


class _Look:
    """Looks at the study now and then, and shows it."""

    def __init__(self, study: Study, show: Show) -> None:
        self.study, self.show = study, show
        self.next = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self.next:
            self.now()
            self.next = time.monotonic() + _EVERY

    def now(self) -> None:
        self.show(self.study.trials())


def crew_of(sweep: Sweep, folder: Path, storage: str | None, trust: Trust) -> Crew:
    """What the sweep's engine is told."""
    options = {key: value for key, value in sweep.engine.items() if key != "name"}
    return Crew(folder.resolve(), Path.cwd(), storage, options, sweep.base.config.device, trust)
