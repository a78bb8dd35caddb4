"""The state of a sweep in Optuna: which trials wait, run, are done or have failed, and which values are sampled next.

Every trial is enqueued when the sweep starts, with its number and, for grid and random, its values: workers anywhere
claim the next one that waits. A failed attempt stays in the study, and its trial is enqueued once more when the sweep
is resumed. A trial whose worker had to stop or is gone is enqueued again at once, by the process that leads the sweep.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from prunetaylor.core.errors import UsageError
from prunetaylor.core.results.sweep import Trial
from prunetaylor.core.text import one_line
from prunetaylor.sweep.definition import Sweep
from prunetaylor.sweep.heartbeat import PATIENCE, is_alive, live_workers
from prunetaylor.sweep.study.journal import open_journal
from prunetaylor.sweep.study.sampling import fixed_values, make_pruner, make_sampler, original_value, suggest

JOURNAL = "journal.log"
_STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}
GONE = "its worker disappeared: it was killed, or its machine was lost"
MAX_RETURNS = 3
"""A trial that returned to the queue this often fails the next time: perhaps it is the trial that kills its workers."""
Stopped = optuna.TrialPruned
"""Raised to stop a trial early."""


@dataclass(frozen=True)
class ClaimedTrial:
    """A trial that this process has to run."""

    number: int
    values: dict[str, Any]
    trial: optuna.Trial


class Study:
    """The study of one sweep. ``url`` names a storage of Optuna's; None stands for a journal in the sweep's folder.

    ``digest`` is the sweep's: one storage may hold several sweeps.
    """

    def __init__(self, sweep: Sweep, folder: Path, digest: str, url: str | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sweep, self.folder = sweep, folder
        self.name = f"{sweep.name}-{digest[:12]}"
        self.storage = _storage(folder, url)
        self.study = self._open()
        self._id = self.storage.get_study_id_from_name(self.name)

    def _open(self) -> optuna.Study:
        """Load the study where it exists, which writes nothing, and create it otherwise."""
        with contextlib.suppress(KeyError):
            return optuna.load_study(study_name=self.name, storage=self.storage, pruner=make_pruner(self.sweep))
        return optuna.create_study(
            study_name=self.name,
            storage=self.storage,
            directions=[one.goal for one in self.sweep.objectives],
            pruner=make_pruner(self.sweep),
            load_if_exists=True,  # another process may have created it in between
        )

    def enqueue_missing(self, max_failures: int | None = None) -> int:
        """Enqueue every trial that is missing, failed, or belonged to a dead worker; return how many wait now.

        After ``max_failures`` trials that fail from here on no worker claims another. One process at a time may call
        this.
        """
        self.return_trials_of_dead()
        last = self._last_attempts()
        values = fixed_values(self.sweep)
        for number in range(1, self.sweep.size + 1):
            chosen = next(values)
            attempt = last.get(number)
            if attempt is None:
                self.study.enqueue_trial(chosen, user_attrs={"trial": number})
            elif attempt.state == TrialState.FAIL:
                # the values that were fixed, and those that were sampled before it failed
                self.study.enqueue_trial({**chosen, **attempt.params}, user_attrs={"trial": number})
        self.study.set_user_attr("max_failures", max_failures)
        self.study.set_user_attr("stop", None)
        return self.waiting

    def maintain(self) -> None:
        """Enqueue the trials of dead workers and all that were returned. Only the leading process calls this."""
        self.return_trials_of_dead()
        for number, attempt in self._last_attempts().items():
            if attempt.state == TrialState.FAIL and "returned" in attempt.user_attrs:
                attributes = attempt.user_attrs
                more = {"returns": attributes.get("returns", 0) + 1, "because": attributes["returned"]}
                chosen = {**attempt.system_attrs.get("fixed_params", {}), **attempt.params}
                self.study.enqueue_trial(chosen, user_attrs={"trial": number, **more})

    def claim(self, worker: str, job: str | None = None, threads: int | None = None) -> ClaimedTrial | None:
        """Claim the next trial that waits, with values sampled where they were not fixed; None where none waits.

        ``job`` is the cluster's job that started the worker, and ``threads`` are the threads that it computes with.
        """
        while not self.stop_reason and self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            trial = self.study.ask()
            number = trial.user_attrs.get("trial")
            if number is None:  # another worker was faster, and Optuna made up a trial of its own
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            trial.set_user_attr("worker", worker)
            trial.set_user_attr("place", {"post": job, "threads": threads})
            self.study.sampler = make_sampler(self.sweep, number)
            return ClaimedTrial(number, {one.key: suggest(trial, one) for one in self.sweep.parameters}, trial)
        return None

    def complete(self, claimed: ClaimedTrial, measured: Mapping[str, Any]) -> None:
        """Record the result of a trial: ``measured`` has ``metrics`` by name, and whatever else the study keeps."""
        with contextlib.suppress(UpdateFinishedTrialError):  # the trial was given up, and ended after all
            claimed.trial.set_user_attr("measured", dict(measured))
            values = [measured["metrics"][one.name] for one in self.sweep.objectives]
            self.study.tell(claimed.trial, values, skip_if_finished=True)

    def mark_stopped(self, claimed: ClaimedTrial) -> None:
        """Record that a trial was stopped early."""
        self.study.tell(claimed.trial, state=TrialState.PRUNED, skip_if_finished=True)

    def fail(self, claimed: ClaimedTrial, cause: str) -> None:
        """Record that a trial failed."""
        self._fail(claimed.trial.number, cause)

    def return_trial(self, claimed: ClaimedTrial, cause: str) -> None:
        """Return a trial to the queue, as its worker has to stop; its run continues from its last state."""
        self._return(claimed.trial.number, cause)

    def fail_trials_of(self, worker: str, cause: str) -> list[int]:
        """Record that the trials of a worker failed, as they killed it, and return their numbers."""
        attempts = self._running(lambda attempt: attempt.user_attrs.get("worker") == worker)
        for attempt in attempts:
            self._fail(attempt.number, cause)
        return [attempt.user_attrs["trial"] for attempt in attempts]

    def return_trials_of(self, worker: str, cause: str) -> None:
        """Return the trials of a worker that was stopped to the queue."""
        for attempt in self._running(lambda attempt: attempt.user_attrs.get("worker") == worker):
            self._return(attempt.number, cause)

    def return_trials_of_job(self, job: str, cause: str) -> bool:
        """Return the trials of a cluster's job that has ended to the queue.

        Returns:
            False where one of its workers is still running.
        """
        all_gone = True
        for attempt in self._running(lambda attempt: _job_of(attempt) == job):
            if is_alive(self.folder, attempt.user_attrs["worker"], reported_gone=True):
                all_gone = False
            else:
                self._return(attempt.number, cause)
        return all_gone

    def return_trials_of_dead(self) -> None:
        """Return the trials of dead workers to the queue."""
        running = self._attempts(TrialState.RUNNING)
        if not running:
            return
        any_alive = bool(live_workers(self.folder))
        for attempt in running:
            worker = attempt.user_attrs.get("worker")
            if worker is not None:
                gone = not is_alive(self.folder, worker)
            else:  # the worker was killed, or has not written its name yet
                gone = not any_alive or _seconds_since(attempt.datetime_start) > PATIENCE
            if gone:
                self._return(attempt.number, GONE)

    def has_claimed(self, name: str) -> bool:
        """Return whether the worker or job of that name has ever claimed a trial."""
        return any(name in (attempt.user_attrs.get("worker"), _job_of(attempt)) for attempt in self._attempts())

    def busy(self) -> set[str]:
        """Return the names of the workers and jobs that run a trial now."""
        running = self._attempts(TrialState.RUNNING)
        return {str(name) for one in running for name in (one.user_attrs.get("worker"), _job_of(one)) if name}

    def stop(self, reason: str) -> None:
        """Let no worker claim another trial until the sweep is resumed."""
        self.study.set_user_attr("stop", reason)

    @property
    def stop_reason(self) -> str | None:
        """The reason for which no trial may be claimed; None where they may."""
        reason: str | None = self.study.user_attrs.get("stop")
        return reason

    def trials(self) -> list[Trial]:
        """Return every trial by number, each in the state of its last attempt."""
        last = self._last_attempts()
        return [self._trial(number, last.get(number)) for number in range(1, self.sweep.size + 1)]

    @property
    def running(self) -> int:
        """The number of trials that run now, anywhere."""
        return len(self._attempts(TrialState.RUNNING))

    @property
    def waiting(self) -> int:
        """The number of trials that wait for a worker."""
        return len(self._attempts(TrialState.WAITING))

    def _trial(self, number: int, attempt: FrozenTrial | None) -> Trial:
        if attempt is None:
            return Trial(number, "waiting", {})
        attributes = attempt.user_attrs
        measured = attributes.get("measured", {}) if attempt.state == TrialState.COMPLETE else {}
        chosen = attempt.params or attempt.system_attrs.get("fixed_params", {})
        state = _STATES[attempt.state]
        returns, returned = attributes.get("returns", 0), attributes.get("because")
        if state == "failed" and "returned" in attributes:
            state, returns, returned = "waiting", returns + 1, attributes["returned"]
        return Trial(
            number,
            state,
            {p.key: original_value(p, chosen[p.key]) for p in self.sweep.parameters if p.key in chosen},
            metrics=measured.get("metrics", {}),
            interval={name: (low, high) for name, (low, high) in measured.get("interval", {}).items()},
            reported=measured.get("reported", {}),
            values=tuple(attempt.values) if attempt.state == TrialState.COMPLETE else (),
            progress=tuple(sorted(attempt.intermediate_values.items())),
            cause=attributes.get("cause") if state == "failed" else None,
            worker=attributes.get("worker"),
            threads=attributes.get("place", {}).get("threads"),
            returns=returns,
            returned=returned,
        )

    def _return(self, number: int, cause: str) -> None:
        """End an attempt so that its trial waits again, or fails where that happened too often."""
        key = self.storage.get_trial_id_from_study_id_trial_number(self._id, number)
        if self.storage.get_trial(key).user_attrs.get("returns", 0) >= MAX_RETURNS:
            self._fail(number, f"returned to the queue {MAX_RETURNS} times, and again: {cause}")
        else:
            self._end(key, "returned", cause)

    def _fail(self, number: int, cause: str) -> None:
        if self._end(self.storage.get_trial_id_from_study_id_trial_number(self._id, number), "cause", cause):
            self._stop_after_too_many_failures()

    def _end(self, key: int, name: str, cause: str) -> bool:
        """Store the cause and end the attempt. Return False where another process ended it first."""
        try:
            self.storage.set_trial_user_attr(key, name, cause)
            return self.storage.set_trial_state_values(key, state=TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False

    def _running(self, condition: Callable[[FrozenTrial], bool]) -> list[FrozenTrial]:
        return [attempt for attempt in self._attempts(TrialState.RUNNING) if condition(attempt)]

    def _stop_after_too_many_failures(self) -> None:
        """Stop the sweep where one trial too many has failed, before any worker claims another."""
        limit = self.study.user_attrs.get("max_failures")
        if limit is not None:
            failed = sum(trial.state == "failed" for trial in self.trials())
            if failed >= limit:
                self.stop(f"{failed} failed")

    def _attempts(self, *states: TrialState) -> list[FrozenTrial]:
        attempts = self.study.get_trials(deepcopy=False, states=states or None)
        return [attempt for attempt in attempts if "trial" in attempt.user_attrs]

    def _last_attempts(self) -> dict[int, FrozenTrial]:
        """Return the last attempt at each trial; a completed or stopped one stands against later ones that failed."""
        last: dict[int, FrozenTrial] = {}
        for attempt in self._attempts():
            number = attempt.user_attrs["trial"]
            before = last.get(number)
            if before is None or before.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                last[number] = attempt
        return last


def _storage(folder: Path, url: str | None) -> BaseStorage:
    if url is None:
        return open_journal(folder / JOURNAL)
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except Exception as err:  # each database has errors of its own
        scheme = url.partition("://")[0]  # the rest may hold a password
        text = one_line(err)[:300]
        raise UsageError(
            f"cannot open the storage {scheme}://...: {text}",
            "give --storage a database URL that Optuna supports, such as postgresql://USER:PASSWORD@HOST/NAME",
        ) from err


def _job_of(attempt: FrozenTrial) -> str | None:
    job: str | None = attempt.user_attrs.get("place", {}).get("post")
    return job


def _seconds_since(start: datetime | None) -> float:
    return time.time() - start.timestamp() if start is not None else float("inf")
