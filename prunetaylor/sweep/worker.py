"""A worker process: takes trials one after another, so that torch is imported once, and ends with whoever started it.

``python -m prunetaylor.sweep.worker`` reads one line of JSON (a ``Task``) from stdin, which stays open as long as its
starter lives. It ends with DONE where no trial waits, with REPLACE where one failed in a way that may have spoiled the
process (out of memory, or an error that nobody foresaw), and with STOPPED where it was told to stop: its trial then
waits again, and goes on from its last state. Whatever kills it takes one trial with it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from prunetaylor.pipeline.files.signals import GRACE, Terminated, at_moments
from prunetaylor.sweep.heartbeat import Alive

if TYPE_CHECKING:
    from prunetaylor.pipeline.files.resume import FolderStateStore
    from prunetaylor.sweep.study.study import Study, Taken
    from prunetaylor.sweep.trial.run import Place

DONE = 0
REPLACE = 75
STOPPED = 76
INTERRUPTED = "interrupted"
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name))
"""Signals with which a cluster asks for the end, by its time limit, a preemption or a cancellation."""
_LAST = 5.0  # seconds beyond the grace, for the study to be told


@dataclass(frozen=True)
class Task:
    """What a worker is told."""

    folder: str
    storage: str | None
    worker: str
    jobs: int
    threads: int
    post: str | None
    trust: dict[str, Any]  # in its plain form, as the user gave it to whoever leads

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


class _Signals:
    """A signal ends a trial at its next moment, and waits while the study is written to."""

    def __init__(self) -> None:
        self.at_work = self.asked = False
        self.why = INTERRUPTED
        for number in SIGNALS:
            signal.signal(number, self._come)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter decides what Ctrl-C means

    def _come(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.at_work:
            self.at_work = False
            raise Terminated

    @contextlib.contextmanager
    def guard(self, store: FolderStateStore) -> Iterator[None]:
        """While a run keeps its state a signal ends it when that is kept, or after the grace."""
        try:
            with at_moments(store, SIGNALS, hurry=False):
                yield
        finally:
            self.asked = self.asked or store.stop is not None


def main() -> int:
    """The exit code."""
    faulthandler.enable()
    task = Task(**json.loads(sys.stdin.readline()))
    starter = os.dup(sys.stdin.fileno())
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())  # what a trial's code reads or closes is not the starter's
    signals = _Signals()
    threading.Thread(target=_end_with_starter, args=(starter, signals), daemon=True).start()
    with Alive(Path(task.folder), task.worker):
        return _work(task, signals)


def _work(task: Task, signals: _Signals) -> int:
    from prunetaylor.core.config.code import Trust
    from prunetaylor.runtime.cores import keep_to
    from prunetaylor.sweep.folder import open_study
    from prunetaylor.sweep.trial.run import Place

    keep_to(task.threads)
    study = open_study(Path(task.folder), task.storage)
    place = Place(Path(task.folder), task.jobs, Trust.from_plain(task.trust))
    while not signals.asked and (taken := study.take(task.worker, task.post, task.threads)) is not None:
        if not _one(study, place, taken, signals):
            return REPLACE
    return STOPPED if signals.asked else DONE


def _one(study: Study, place: Place, taken: Taken, signals: _Signals) -> bool:
    """Run a trial and tell the study what came of it. False where this process should not run another."""
    from prunetaylor.core.errors import PruneTaylorError
    from prunetaylor.sweep.study.study import Stopped
    from prunetaylor.sweep.trial.files import trial_folder, write_error
    from prunetaylor.sweep.trial.run import details, explain, run_trial

    measured: dict[str, Any] = {}
    failure: BaseException | None = None
    try:
        signals.at_work = not signals.asked
        if signals.asked:
            raise Terminated
        measured = run_trial(study.sweep, place, taken, signals.guard)
    except BaseException as err:  # sys.exit() of a trial's code ends the trial, not the worker
        failure = err
    finally:
        signals.at_work = False
    if failure is None:
        study.done(taken, measured)
    elif isinstance(failure, Stopped):
        study.stopped(taken)
    elif isinstance(failure, Terminated):
        study.give_back(taken, signals.why)
    else:
        cause = explain(failure)
        write_error(trial_folder(place.folder, taken.number), cause, details(failure))
        study.failed(taken, cause)
        return isinstance(failure, PruneTaylorError)
    return True


def _end_with_starter(starter: int, signals: _Signals) -> None:
    """The pipe ends when the starter does, kill -9 included: give the trial back, and end."""
    while os.read(starter, 1024):
        pass
    signals.why = "the process that started its worker is gone"
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE + _LAST)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
