"""A worker process: it runs trials one after another, so that torch is imported once, and ends with its parent.

``python -m prunetaylor.sweep.worker`` reads one line of JSON (``WorkerSettings``) from stdin, which stays open as long
as the parent lives. It ends with DONE where no trial waits, with REPLACE where a trial failed in a way that may have
spoiled the process (out of memory, or an unforeseen error), and with STOPPED where it was asked to stop: its trial then
returns to the queue, and continues from its last state. If the worker is killed, it loses one trial at most.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from prunetaylor.pipeline.files.signals import GRACE, Terminated, stop_at_checkpoints
from prunetaylor.runtime.parent_process import end_with_parent
from prunetaylor.sweep.heartbeat import Heartbeat

if TYPE_CHECKING:
    from prunetaylor.pipeline.files.resume import FolderStateStore
    from prunetaylor.sweep.study.study import ClaimedTrial, Study
    from prunetaylor.sweep.trial.run import TrialContext

DONE = 0
REPLACE = 75
STOPPED = 76
INTERRUPTED = "interrupted"
CLUSTER_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
)
"""The signals with which a cluster ends a job: at its time limit, for a preemption, or when it is cancelled."""
_REPORTING_TIME = 5.0  # seconds beyond the grace, to write to the study


@dataclass(frozen=True)
class WorkerSettings:
    """The settings that a worker gets from its parent."""

    folder: str
    storage: str | None
    worker: str
    jobs: int
    threads: int
    job: str | None
    trust: dict[str, Any]  # the code that the user of the leading process trusts, as plain values
    cache_dir: str | None

    def line(self) -> str:
        """Return the settings as one line of JSON."""
        return json.dumps(asdict(self)) + "\n"


class _StopSignals:
    """A signal ends a trial at its next checkpoint; while the worker writes to the study it only requests the end."""

    def __init__(self) -> None:
        self.running_trial = self.stop_requested = False
        self.reason = INTERRUPTED
        for number in CLUSTER_SIGNALS:
            signal.signal(number, self._handle)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True
        if self.running_trial:
            self.running_trial = False
            raise Terminated

    def parent_is_gone(self) -> None:
        """Record why the signal that follows is sent."""
        self.reason = "the process that started its worker is gone"

    @contextlib.contextmanager
    def guard(self, store: FolderStateStore) -> Iterator[None]:
        """Let a signal inside this block end the run when its state is saved, or after the grace."""
        try:
            with stop_at_checkpoints(store, CLUSTER_SIGNALS, second_ends=False):
                yield
        finally:
            self.stop_requested = self.stop_requested or store.stop is not None


def main() -> int:
    """Run trials as the parent asks, and return the exit code."""
    faulthandler.enable()
    settings = WorkerSettings(**json.loads(sys.stdin.readline()))
    parent = os.dup(sys.stdin.fileno())
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), sys.stdin.fileno())  # a trial's code may read or close stdin
    signals = _StopSignals()
    end_with_parent(parent, exit_code=1, grace=GRACE + _REPORTING_TIME, notify=signals.parent_is_gone)
    with Heartbeat(Path(settings.folder), settings.worker):
        return _work(settings, signals)


def _work(settings: WorkerSettings, signals: _StopSignals) -> int:
    from prunetaylor.core.config.code import Trust
    from prunetaylor.runtime.cores import keep_to
    from prunetaylor.sweep.folder import open_study
    from prunetaylor.sweep.trial.run import TrialContext

    keep_to(settings.threads)
    study = open_study(Path(settings.folder), settings.storage)
    trust = Trust.from_plain(settings.trust)
    context = TrialContext(Path(settings.folder), settings.jobs, trust, settings.cache_dir)
    while not signals.stop_requested:
        claimed = study.claim(settings.worker, settings.job, settings.threads)
        if claimed is None:
            break
        if not _run_one(study, context, claimed, signals):
            return REPLACE
    return STOPPED if signals.stop_requested else DONE


def _run_one(study: Study, context: TrialContext, claimed: ClaimedTrial, signals: _StopSignals) -> bool:
    """Run a trial and write its result to the study. Return False where this process should not run another."""
    from prunetaylor.core.errors import PruneTaylorError
    from prunetaylor.sweep.study.study import Stopped
    from prunetaylor.sweep.trial.files import trial_folder, write_error
    from prunetaylor.sweep.trial.run import details, explain, run_trial

    measured: dict[str, Any] = {}
    failure: BaseException | None = None
    try:
        signals.running_trial = not signals.stop_requested
        if signals.stop_requested:
            raise Terminated
        measured = run_trial(study.sweep, context, claimed, signals.guard)
    except BaseException as err:  # sys.exit() in a trial's code ends the trial, not the worker
        failure = err
    finally:
        signals.running_trial = False
    if failure is None:
        study.complete(claimed, measured)
    elif isinstance(failure, Stopped):
        study.mark_stopped(claimed)
    elif isinstance(failure, Terminated):
        study.return_trial(claimed, signals.reason)
    else:
        cause = explain(failure)
        write_error(trial_folder(context.folder, claimed.number), cause, details(failure))
        study.fail(claimed, cause)
        return isinstance(failure, PruneTaylorError)
    return True


if __name__ == "__main__":
    sys.exit(main())
