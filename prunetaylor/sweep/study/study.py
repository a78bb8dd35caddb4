"""A sweep's state in Optuna: which trials wait, run, are done or failed, and what is sampled next.

Every trial is enqueued when the sweep starts, with its number and, for grid and random, its values: workers anywhere
take the next that waits. An attempt that failed stays in the study; its trial is enqueued once more on resuming. One
that was given back, by a worker that had to stop or for one that is gone, is enqueued at once by whoever leads.
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
from prunetaylor.sweep.definition import Sweep
from prunetaylor.sweep.heartbeat import PATIENCE, is_alive, others
from prunetaylor.sweep.study.journal import open_journal
from prunetaylor.sweep.study.sampling import fixed, meant, pruner, sampler, suggested

JOURNAL = "journal.log"
_STATES = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}
GONE = "its worker disappeared: it was killed, or its machine was lost"
RETURNS = 3
"""Times that a trial is given back before it counts as failed: perhaps it is the trial that takes machines down."""
Stopped = optuna.TrialPruned
"""Raised by whoever watches a trial, to stop it early."""


@dataclass(frozen=True)
class Taken:
    """A trial that this process has to run."""

    number: int
    values: dict[str, Any]
    trial: optuna.Trial


class Study:
    """The study of one sweep. ``url`` names a storage of Optuna's; None: a journal in the sweep's folder.

    ``digest`` is the sweep's: several may be kept in one storage.
    """

    def __init__(self, sweep: Sweep, folder: Path, digest: str, url: str | None) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.sweep, self.folder = sweep, folder
        self.name = f"{sweep.name}-{digest[:12]}"
        self.storage = _storage(folder, url)
        self.study = self._open()
        self._id = self.storage.get_study_id_from_name(self.name)

    def _open(self) -> optuna.Study:
        """The study if it is there, which writes nothing, or else a new one."""
        with contextlib.suppress(KeyError):
            return optuna.load_study(study_name=self.name, storage=self.storage, pruner=pruner(self.sweep))
        return optuna.create_study(
            study_name=self.name,
            storage=self.storage,
            directions=[one.goal for one in self.sweep.objectives],
            pruner=pruner(self.sweep),
            load_if_exists=True,  # two processes may have come here
        )

    def fill(self, max_failures: int | None = None) -> int:
        """Enqueue what is missing, failed, or was held by a worker that is gone; the number of trials that wait now.

        After ``max_failures`` trials that fail from here on no worker takes another. One process at a time may do this.
        """
        self.reap()
        last = self._last()
        values = fixed(self.sweep)
        for number in range(1, self.sweep.size + 1):
            chosen = next(values)
            attempt = last.get(number)
            if attempt is None:
                self.study.enqueue_trial(chosen, user_attrs={"trial": number})
            elif attempt.state == TrialState.FAIL:
                # what was chosen for it, and what was sampled before it failed
                self.study.enqueue_trial({**chosen, **attempt.params}, user_attrs={"trial": number})
        self.study.set_user_attr("max_failures", max_failures)
        self.study.set_user_attr("stop", None)
        return self.waiting

    def tend(self) -> None:
        """Give back the trials of workers that are gone, and enqueue all that were given back. The leader does this."""
        self.reap()
        for number, attempt in self._last().items():
            if attempt.state == TrialState.FAIL and "returned" in attempt.user_attrs:
                said = attempt.user_attrs
                more = {"returns": said.get("returns", 0) + 1, "because": said["returned"]}
                chosen = {**attempt.system_attrs.get("fixed_params", {}), **attempt.params}
                self.study.enqueue_trial(chosen, user_attrs={"trial": number, **more})

    def take(self, worker: str, post: str | None = None, threads: int | None = None) -> Taken | None:
        """The next trial that waits, its values sampled where they were not fixed; None where none does.

        ``post`` is the engine's name for what the worker was started by, ``threads`` what it computes with.
        """
        while not self.stopping and self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            trial = self.study.ask()
            number = trial.user_attrs.get("trial")
            if number is None:  # another worker was faster, and Optuna made a trial of its own
                self.study.tell(trial, state=TrialState.FAIL)
                continue
            trial.set_user_attr("worker", worker)
            trial.set_user_attr("place", {"post": post, "threads": threads})
            self.study.sampler = sampler(self.sweep, number)
            return Taken(number, {one.key: suggested(trial, one) for one in self.sweep.parameters}, trial)
        return None

    def done(self, taken: Taken, measured: Mapping[str, Any]) -> None:
        """The trial has its result: ``measured`` has ``metrics`` by name, and what else is to be kept."""
        with contextlib.suppress(UpdateFinishedTrialError):  # it was given up, and came back
            taken.trial.set_user_attr("measured", dict(measured))
            values = [measured["metrics"][one.name] for one in self.sweep.objectives]
            self.study.tell(taken.trial, values, skip_if_finished=True)

    def stopped(self, taken: Taken) -> None:
        """The trial was stopped early."""
        self.study.tell(taken.trial, state=TrialState.PRUNED, skip_if_finished=True)

    def failed(self, taken: Taken, cause: str) -> None:
        self._fail(taken.trial.number, cause)

    def give_back(self, taken: Taken, cause: str) -> None:
        """The trial waits again, as its worker has to stop; its run goes on from its last state."""
        self._return(taken.trial.number, cause)

    def lost(self, worker: str, cause: str) -> list[int]:
        """A worker died of the trials that it holds: they have failed. The numbers of those trials."""
        held = self._held(lambda attempt: attempt.user_attrs.get("worker") == worker)
        for attempt in held:
            self._fail(attempt.number, cause)
        return [attempt.user_attrs["trial"] for attempt in held]

    def release(self, worker: str, cause: str) -> None:
        """A worker was ended: give back what it holds."""
        for attempt in self._held(lambda attempt: attempt.user_attrs.get("worker") == worker):
            self._return(attempt.number, cause)

    def release_post(self, post: str, cause: str) -> bool:
        """The engine says that ``post`` is over: give back what its workers hold. False where one is at work still."""
        left = False
        for attempt in self._held(lambda attempt: _post(attempt) == post):
            if is_alive(self.folder, attempt.user_attrs["worker"], told_gone=True):
                left = True
            else:
                self._return(attempt.number, cause)
        return not left

    def has_taken(self, name: str) -> bool:
        """Return whether the worker or post of that name has had a trial."""
        return any(name in (attempt.user_attrs.get("worker"), _post(attempt)) for attempt in self._attempts())

    def busy(self) -> set[str]:
        """Return the names of the workers and posts that have a trial now."""
        running = self._attempts(TrialState.RUNNING)
        return {str(name) for one in running for name in (one.user_attrs.get("worker"), _post(one)) if name}

    def reap(self) -> None:
        """Give back the trials of workers that are gone."""
        running = self._attempts(TrialState.RUNNING)
        if not running:
            return
        anybody = bool(others(self.folder))
        for attempt in running:
            worker = attempt.user_attrs.get("worker")
            if worker is not None:
                gone = not is_alive(self.folder, worker)
            else:  # it was killed, or is about to say who it is
                gone = not anybody or _seconds_since(attempt.datetime_start) > PATIENCE
            if gone:
                self._return(attempt.number, GONE)

    def stop(self, why: str) -> None:
        """No worker takes another trial until the sweep is resumed."""
        self.study.set_user_attr("stop", why)

    @property
    def stopping(self) -> str | None:
        found: str | None = self.study.user_attrs.get("stop")
        return found

    def trials(self) -> list[Trial]:
        """Every trial by number, each as its last attempt left it."""
        last = self._last()
        return [self._trial(number, last.get(number)) for number in range(1, self.sweep.size + 1)]

    @property
    def running(self) -> int:
        """The number of trials that are at work anywhere."""
        return len(self._attempts(TrialState.RUNNING))

    @property
    def waiting(self) -> int:
        """The number of trials that wait for a worker."""
        return len(self._attempts(TrialState.WAITING))

    def _trial(self, number: int, attempt: FrozenTrial | None) -> Trial:
        if attempt is None:
            return Trial(number, "waiting", {})
        said = attempt.user_attrs
        measured = said.get("measured", {}) if attempt.state == TrialState.COMPLETE else {}
        chosen = attempt.params or attempt.system_attrs.get("fixed_params", {})
        state = _STATES[attempt.state]
        returns, returned = said.get("returns", 0), said.get("because")
        if state == "failed" and "returned" in said:
            state, returns, returned = "waiting", returns + 1, said["returned"]
        return Trial(
            number,
            state,
            {p.key: meant(p, chosen[p.key]) for p in self.sweep.parameters if p.key in chosen},
            metrics=measured.get("metrics", {}),
            interval={name: (low, high) for name, (low, high) in measured.get("interval", {}).items()},
            reported=measured.get("reported", {}),
            values=tuple(attempt.values) if attempt.state == TrialState.COMPLETE else (),
            progress=tuple(sorted(attempt.intermediate_values.items())),
            cause=said.get("cause") if state == "failed" else None,
            worker=said.get("worker"),
            threads=said.get("place", {}).get("threads"),
            returns=returns,
            returned=returned,
        )

    def _return(self, number: int, cause: str) -> None:
        """End an attempt so that its trial waits again, or has failed where that happens too often."""
        key = self.storage.get_trial_id_from_study_id_trial_number(self._id, number)
        if self.storage.get_trial(key).user_attrs.get("returns", 0) >= RETURNS:
            self._fail(number, f"given back {RETURNS} times, and again: {cause}")
        else:
            self._end(key, "returned", cause)

    def _fail(self, number: int, cause: str) -> None:
        if self._end(self.storage.get_trial_id_from_study_id_trial_number(self._id, number), "cause", cause):
            self._heed_failures()

    def _end(self, key: int, name: str, cause: str) -> bool:
        """Keep the cause and end the attempt; False where another process ended it first."""
        try:
            self.storage.set_trial_user_attr(key, name, cause)
            return self.storage.set_trial_state_values(key, state=TrialState.FAIL)
        except UpdateFinishedTrialError:
            return False

    def _held(self, wanted: Callable[[FrozenTrial], bool]) -> list[FrozenTrial]:
        return [attempt for attempt in self._attempts(TrialState.RUNNING) if wanted(attempt)]

    def _heed_failures(self) -> None:
        """Whoever sees a trial fail stops the sweep where that is one too many, before anybody takes another."""
        most = self.study.user_attrs.get("max_failures")
        if most is not None:
            failed = sum(trial.state == "failed" for trial in self.trials())
            if failed >= most:
                self.stop(f"{failed} failed")

    def _attempts(self, *states: TrialState) -> list[FrozenTrial]:
        found = self.study.get_trials(deepcopy=False, states=states or None)
        return [attempt for attempt in found if "trial" in attempt.user_attrs]

    def _last(self) -> dict[int, FrozenTrial]:
        """The last attempt at each trial; one that came to an end stands against later ones that did not."""
        found: dict[int, FrozenTrial] = {}
        for attempt in self._attempts():
            number = attempt.user_attrs["trial"]
            before = found.get(number)
            if before is None or before.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                found[number] = attempt
        return found


def _storage(folder: Path, url: str | None) -> BaseStorage:
    if url is None:
        return open_journal(folder / JOURNAL)
    try:
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except Exception as err:  # each database has errors of its own
        shown = url.partition("://")[0]
        text = " ".join(str(err).split())[:300]
        raise UsageError(
            f"cannot open the storage {shown}://...: {text}",
            "--storage takes a database URL that Optuna knows, such as postgresql://USER:PASSWORD@HOST/NAME",
        ) from err


def _post(attempt: FrozenTrial) -> str | None:
    found: str | None = attempt.user_attrs.get("place", {}).get("post")
    return found


def _seconds_since(start: datetime | None) -> float:
    return time.time() - start.timestamp() if start is not None else float("inf")
