"""The jobs of a cluster, each of which runs one worker: one for each trial that waits, and others for lost ones."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from prunetaylor.sweep.engine_context import EngineFailed, EngineMonitor
from prunetaylor.sweep.study.study import Study

_INTERVAL = 2.0  # seconds between two readings of the queue
_MAX_EARLY_ENDS = 3  # jobs in a row that end before they claim a trial: something is wrong with all of them


class Cluster(Protocol):
    """A cluster that runs jobs."""

    pause: float
    """Seconds between two readings of the jobs' states."""

    def max_jobs(self) -> int:
        """Return the number of jobs that may run at the same time."""

    def start(self, job: str) -> Any:
        """Start a job of that name, and return the cluster's handle of it."""

    def ended(self, jobs: Mapping[str, Any]) -> Mapping[str, str | None]:
        """Return the names of those that have ended, each with the reason; None where it ended by itself."""

    def stop(self, jobs: Mapping[str, Any]) -> None:
        """Stop these jobs, and wait until they have returned their trials."""


def run_jobs(cluster: Cluster, study: Study, monitor: EngineMonitor) -> None:
    """Keep jobs running until no trial waits, and stop the remaining ones at the end."""
    jobs: dict[str, Any] = {}
    lost: dict[str, str] = {}
    early_ends, last_start = 0, -_INTERVAL
    try:
        while True:
            ended = cluster.ended(jobs)
            for job, reason in ended.items():
                del jobs[job]
                lost[job] = reason or "its task ended"
                useful = study.has_claimed(job) or not study.waiting or study.stop_reason
                early_ends = 0 if useful else early_ends + 1
                if reason is not None:
                    monitor.note(reason)
                if early_ends == _MAX_EARLY_ENDS:
                    raise EngineFailed(f"{_MAX_EARLY_ENDS} tasks in a row ended before they ran a trial: {lost[job]}")
            for job in [one for one, reason in lost.items() if study.return_trials_of_job(one, reason)]:
                del lost[job]
            if ended or time.monotonic() - last_start >= _INTERVAL:
                _start_jobs(cluster, study, jobs)
                last_start = time.monotonic()
            if not jobs and not lost and (study.stop_reason or not study.waiting):
                return
            time.sleep(cluster.pause)
    finally:
        cluster.stop(jobs)


def _start_jobs(cluster: Cluster, study: Study, jobs: dict[str, Any]) -> None:
    waiting = study.waiting
    if not waiting or study.stop_reason:
        return
    without_trial = sum(job not in study.busy() for job in jobs)
    for _ in range(min(cluster.max_jobs() - len(jobs), waiting - without_trial)):
        job = uuid.uuid4().hex
        jobs[job] = cluster.start(job)
