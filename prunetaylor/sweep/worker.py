"""A worker process: takes trials one after another, so that torch is imported once, and ends with whoever started it.

``python -m prunetaylor.sweep.worker`` reads one line of JSON (a ``Task``) from stdin, which stays open as long as its
starter lives. It ends with DONE where no trial waits, and with REPLACE where one failed in a way that may have spoiled
the process: out of memory, or an error that nobody foresaw. Whatever kills it takes one trial with it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from prunetaylor.sweep.alive import Alive

DONE = 0
REPLACE = 75
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Task:
    """What a worker is told."""

    folder: str
    storage: str | None
    worker: str
    jobs: int
    trust: dict[str, Any]  # in its plain form, as the user gave it to whoever leads

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


class Terminated(BaseException):
    """SIGTERM came while a trial ran."""


class _Signals:
    """SIGTERM ends a trial at once, and waits while the study is written to."""

    def __init__(self) -> None:
        self.at_work = self.asked = False
        signal.signal(signal.SIGTERM, self._come)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the starter decides what Ctrl-C means

    def _come(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self.at_work:
            self.at_work = False
            raise Terminated


def main() -> int:
    """The exit code."""
    faulthandler.enable()
    task = Task(**json.loads(sys.stdin.readline()))
    signals = _Signals()
    threading.Thread(target=_end_with_starter, daemon=True).start()
    with Alive(Path(task.folder), task.worker):
        return _work(task, signals)


def _work(task: Task, signals: _Signals) -> int:
    from prunetaylor.config.code import Trust
    from prunetaylor.errors import PruneTaylorError
    from prunetaylor.sweep.folder import open_study
    from prunetaylor.sweep.study import Stopped
    from prunetaylor.sweep.trial import Place, details, explain, run_trial
    from prunetaylor.sweep.trial_files import trial_folder, write_error

    study = open_study(Path(task.folder), task.storage)
    place = Place(Path(task.folder), task.jobs, Trust.from_plain(task.trust))
    while not signals.asked and (taken := study.take(task.worker)) is not None:
        measured: dict[str, Any] = {}
        failure: BaseException | None = None
        try:
            signals.at_work = not signals.asked
            if signals.asked:
                raise Terminated
            measured = run_trial(study.sweep, place, taken)
        except (Exception, Terminated) as err:
            failure = err
        finally:
            signals.at_work = False
        if failure is None:
            study.done(taken, measured)
        elif isinstance(failure, Stopped):
            study.stopped(taken)
        else:
            cause = INTERRUPTED if isinstance(failure, Terminated) else explain(failure)
            write_error(trial_folder(place.folder, taken.number), cause, details(failure))
            study.failed(taken, cause)
            if not isinstance(failure, PruneTaylorError):
                return REPLACE
    return DONE


def _end_with_starter() -> None:
    """Stdin ends when the starter does, kill -9 included; nobody would hear of the trial any more."""
    while os.read(sys.stdin.fileno(), 1024):  # not sys.stdin.read: its lock would be held when the interpreter ends
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
