"""Jobs of a Slurm cluster, through submitit: each runs trials, one after another, until none waits.

The sweep's folder, the checkpoint and the data must be on a file system that the nodes share.
"""

from __future__ import annotations

import shlex
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import Field

from prunetaylor.core.config.fields import Size
from prunetaylor.core.config.schema import Section
from prunetaylor.core.errors import UsageError
from prunetaylor.core.files import own_folder
from prunetaylor.core.requirements import install_hint
from prunetaylor.core.text import one_line
from prunetaylor.runtime.python_process import python, safe_path
from prunetaylor.sweep.engine_context import EngineContext, EngineFailed, EngineMonitor
from prunetaylor.sweep.engines import _driver
from prunetaylor.sweep.engines._jobs import run_jobs
from prunetaylor.sweep.engines.local import run_single_worker
from prunetaylor.sweep.folder import open_study

_LOGS = "slurm"
_INTERVAL = 3.0  # seconds between two calls of squeue
_GRACE = 40.0  # seconds for cancelled jobs to return their trials
_WARNING = 90  # seconds before the time limit at which Slurm sends its signal
_LONG_WAIT = 60.0  # seconds without a started job before the user is told
_END_REASONS = {
    "CANCELLED": "was cancelled",
    "TIMEOUT": "reached its time limit",
    "NODE_FAIL": "lost its node",
    "PREEMPTED": "was preempted",
    "OUT_OF_MEMORY": "ran out of memory: ask for more with engine.memory",
}
_ACTIVE_STATES = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT",
            "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "RESV_DEL_HOLD", "SPECIAL_EXIT")  # fmt: skip


class Options(Section):
    """The options of ``engine: {name: slurm}``."""

    jobs: Annotated[int, Field(ge=1)] = 1
    """Jobs at the same time; each runs one trial at a time."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    minutes: Annotated[int, Field(ge=1)] = 60 * 24
    """Time limit of a job; its trial then continues from its last state in another job."""
    cpus: Annotated[int, Field(ge=1)] = 1
    """Cores of a job."""
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of a job; a trial uses at most one."""
    memory: Size | None = None
    """Memory of a job, such as 16GiB; null: the cluster's default."""
    cluster: Literal["slurm", "local"] = "slurm"
    """local: processes on this machine, to test the sweep's file."""


def run(context: EngineContext, monitor: EngineMonitor) -> None:
    """Run trials until none waits. KeyboardInterrupt and the like stop the jobs first."""
    _driver.run("slurm", context, monitor)


def drive(context: EngineContext, monitor: EngineMonitor) -> None:
    """Submit jobs, and new ones for those that are lost; this runs in the driver's process."""
    options = Options(**context.options)
    run_jobs(
        _SlurmJobs(_executor(context, options), options, context, monitor),
        open_study(context.folder, context.storage),
        monitor,
    )


class _SlurmJobs:
    """This sweep's jobs on Slurm."""

    pause = 0.5

    def __init__(self, executor: Any, options: Options, context: EngineContext, monitor: EngineMonitor) -> None:
        self.executor, self.options, self.context, self.monitor = executor, options, context, monitor
        self.submitted = self.wait_reported = False
        self.last_call = 0.0
        self.waiting_since = time.monotonic()

    def max_jobs(self) -> int:
        return self.options.jobs

    def start(self, job: str) -> Any:
        try:
            with safe_path():
                handle = self.executor.submit(run_single_worker, replace(self.context, job=job), self.options.cpus)
        except Exception as error:  # submitit and sbatch have errors of their own
            text = one_line(error)[-400:]
            kind = EngineFailed if self.submitted else UsageError
            raise kind(f"Slurm refuses the job: {text}", "check partition, account and qos of the engine") from error
        self.submitted = True
        return handle

    def ended(self, jobs: Mapping[str, Any]) -> Mapping[str, str | None]:
        ends = {job: _result(handle) for job, handle in jobs.items() if handle.paths.result_pickle.exists()}
        open_jobs = {job: handle for job, handle in jobs.items() if job not in ends}
        if self.options.cluster == "local":
            return ends | {job: f"job {handle.job_id} died" for job, handle in open_jobs.items() if handle.done()}
        if not open_jobs or time.monotonic() - self.last_call < _INTERVAL:
            return ends
        self.last_call = time.monotonic()
        states = _states([str(handle.job_id) for handle in open_jobs.values()])
        if states is None:  # Slurm's controller does not answer now
            return ends
        self._report_long_wait(states)
        for job, handle in open_jobs.items():
            state, _ = states.get(str(handle.job_id), ("GONE", ""))
            if state not in _ACTIVE_STATES and not handle.paths.result_pickle.exists():
                reason = _END_REASONS.get(state, f"ended without a result ({state})")
                ends[job] = f"Slurm job {handle.job_id} {reason}"
        return ends

    def stop(self, jobs: Mapping[str, Any]) -> None:
        for handle in jobs.values():
            handle.cancel(check=False)
        until = time.monotonic() + _GRACE
        open_jobs = dict(jobs)
        while open_jobs and time.monotonic() < until:
            self.last_call = 0.0
            for job in self.ended(open_jobs):
                del open_jobs[job]
            time.sleep(self.pause)

    def _report_long_wait(self, states: Mapping[str, tuple[str, str]]) -> None:
        reasons = {reason for state, reason in states.values() if state == "PENDING"}
        if len(reasons) == 0 or any(state != "PENDING" for state, _ in states.values()):
            self.waiting_since, self.wait_reported = time.monotonic(), False
        elif time.monotonic() - self.waiting_since > _LONG_WAIT and not self.wait_reported:
            self.monitor.note(f"Slurm has not started any job yet: {', '.join(sorted(reasons))}")
            self.wait_reported = True


def _states(jobs: list[str]) -> dict[str, tuple[str, str]] | None:
    """Return each job's state and the reason for it, without jobs that Slurm has forgotten; None where it is silent.

    squeue works without accounting, which many clusters lack.
    """
    command = ["squeue", "--noheader", "--states=all", "--format=%A|%T|%r", f"--jobs={','.join(jobs)}"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if process.returncode and "Invalid job id" not in process.stderr:
        return None
    rows = (line.strip().split("|", 2) for line in process.stdout.splitlines() if line.count("|") >= 2)
    return {number: (state, reason) for number, state, reason in rows}


def _result(handle: Any) -> str | None:
    """Return why a job ended; None where no trial waited any more. Only this process knows the folder of the file."""
    from submitit.core.utils import pickle_load

    kind, value = pickle_load(handle.paths.result_pickle)
    if kind == "error":
        lines = [line for line in str(value).splitlines() if line.strip()] or ["no message"]
        return f"job {handle.job_id} failed: {lines[-1][:300]}"
    return f"job {handle.job_id} was {value}" if value else None


def _executor(context: EngineContext, options: Options) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            f"the engine slurm needs submitit, which cannot be imported: {error}", install_hint("submitit")
        ) from error
    # submitit reads pickles from this folder; as it is new each time, nobody can have put one there.
    logs = own_folder(own_folder(context.folder / _LOGS) / uuid.uuid4().hex)
    try:
        interpreter = {f"{options.cluster}_python": shlex.join(python())}
        executor = submitit.AutoExecutor(str(logs), cluster=options.cluster, **interpreter)
    except RuntimeError as error:
        raise UsageError(
            f"Slurm was not found: {error}", "to test the file on this machine, set cluster: local"
        ) from error
    parameters: dict[str, Any] = {
        "name": "prunetaylor",
        "timeout_min": options.minutes,
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus,
        "mem_gb": None if options.memory is None else options.memory / 1e9,
        "slurm_partition": options.partition,
        "slurm_account": options.account,
        "slurm_qos": options.qos,
        # Since Slurm 22.05 a job's steps do not inherit it.
        "slurm_srun_args": [f"--cpus-per-task={options.cpus}"],
        "slurm_signal_delay_s": min(_WARNING, options.minutes * 20),
        # The trial of an ended job returns to the queue, and gets a new job.
        "slurm_additional_parameters": {"no-requeue": True},
    }
    executor.update_parameters(**{key: value for key, value in parameters.items() if value is not None})
    return executor
