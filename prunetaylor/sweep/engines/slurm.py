"""Jobs of a Slurm cluster, through submitit: each takes trials, one after another, until none waits.

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

from prunetaylor.core.config.schema import Section, Size
from prunetaylor.core.errors import UsageError
from prunetaylor.core.files import own_folder
from prunetaylor.core.requirements import install_hint
from prunetaylor.runtime.python_process import python, safe_path
from prunetaylor.sweep.engine_context import EngineContext, EngineFailed, Watch
from prunetaylor.sweep.engines import _driver
from prunetaylor.sweep.engines._posts import man
from prunetaylor.sweep.engines.local import alone
from prunetaylor.sweep.folder import open_study

_LOGS = "slurm"
_ASK = 3.0  # seconds between two questions to Slurm
_GRACE = 40.0  # seconds for jobs to give back their trials when they are cancelled
_WARNING = 90  # seconds before the time limit at which Slurm tells a job
_LONG = 60.0  # seconds after which jobs that have not started are worth a word
_WHY = {
    "CANCELLED": "was cancelled",
    "TIMEOUT": "reached its time limit",
    "NODE_FAIL": "lost its node",
    "PREEMPTED": "was preempted",
    "OUT_OF_MEMORY": "ran out of memory: ask for more with engine.memory",
}
_AT_WORK = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT",
            "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESIZING", "RESV_DEL_HOLD", "SPECIAL_EXIT")  # fmt: skip


class Options(Section):
    """Of ``engine: {name: slurm}``."""

    jobs: Annotated[int, Field(ge=1)] = 1
    """Jobs, each with a trial at a time."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    minutes: Annotated[int, Field(ge=1)] = 60 * 24
    """After which Slurm ends a job; its trial goes on from its last state in another one."""
    cpus: Annotated[int, Field(ge=1)] = 1
    """Cores of a job, with which its trial computes."""
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of a job: a trial uses one at most."""
    memory: Size | None = None
    """Of a job, such as 16GiB; null: what the cluster gives by itself."""
    cluster: Literal["slurm", "local"] = "slurm"
    """local: processes on this machine, to try a file out."""


def run(crew: EngineContext, watch: Watch) -> None:
    """Work on the sweep until no trial waits. KeyboardInterrupt and the like end the jobs and go on."""
    _driver.run("slurm", crew, watch)


def drive(crew: EngineContext, watch: Watch) -> None:
    """Submit the jobs and others for those that are lost, in a process of its own."""
    options = Options(**crew.options)
    man(_Jobs(_executor(crew, options), options, crew, watch), open_study(crew.folder, crew.storage), watch)


class _Jobs:
    """Slurm's jobs for this sweep."""

    pause = 0.5

    def __init__(self, executor: Any, options: Options, crew: EngineContext, watch: Watch) -> None:
        self.executor, self.options, self.crew, self.watch = executor, options, crew, watch
        self.submitted = self.told = False
        self.asked = 0.0
        self.idle_since = time.monotonic()

    def most(self) -> int:
        return self.options.jobs

    def start(self, post: str) -> Any:
        try:
            with safe_path():
                job = self.executor.submit(alone, replace(self.crew, post=post), self.options.cpus)
        except Exception as error:  # submitit's, or sbatch's
            text = " ".join(str(error).split())[-400:]
            kind = EngineFailed if self.submitted else UsageError
            raise kind(f"Slurm takes no job: {text}", "see partition, account, qos and the like of engine") from error
        self.submitted = True
        return job

    def ended(self, posts: Mapping[str, Any]) -> Mapping[str, str | None]:
        found = {post: _result(job) for post, job in posts.items() if job.paths.result_pickle.exists()}
        left = {post: job for post, job in posts.items() if post not in found}
        if self.options.cluster == "local":
            return found | {post: f"job {job.job_id} died" for post, job in left.items() if job.done()}
        if not left or time.monotonic() - self.asked < _ASK:
            return found
        self.asked = time.monotonic()
        states = _states([str(job.job_id) for job in left.values()])
        if states is None:  # Slurm's controller does not answer now
            return found
        self._say_why_idle(states)
        for post, job in left.items():
            state, _ = states.get(str(job.job_id), ("GONE", ""))
            if state not in _AT_WORK and not job.paths.result_pickle.exists():
                found[post] = f"Slurm job {job.job_id} {_WHY.get(state, f'ended without a result ({state})')}"
        return found

    def stop(self, posts: Mapping[str, Any]) -> None:
        for job in posts.values():
            job.cancel(check=False)
        until = time.monotonic() + _GRACE
        left = dict(posts)
        while left and time.monotonic() < until:
            self.asked = 0.0
            for post in self.ended(left):
                del left[post]
            time.sleep(self.pause)

    def _say_why_idle(self, states: Mapping[str, tuple[str, str]]) -> None:
        reasons = {reason for state, reason in states.values() if state == "PENDING"}
        if len(reasons) == 0 or any(state != "PENDING" for state, _ in states.values()):
            self.idle_since, self.told = time.monotonic(), False
        elif time.monotonic() - self.idle_since > _LONG and not self.told:
            self.watch.note(f"Slurm has started none of the jobs yet: {', '.join(sorted(reasons))}")
            self.told = True


def _states(jobs: list[str]) -> dict[str, tuple[str, str]] | None:
    """Each job's state and the reason for it, without those that Slurm has forgotten; None where it does not answer.

    squeue knows without accounting, which many clusters lack.
    """
    command = ["squeue", "--noheader", "--states=all", "--format=%A|%T|%r", f"--jobs={','.join(jobs)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    rows = (line.strip().split("|", 2) for line in done.stdout.splitlines() if line.count("|") >= 2)
    return {number: (state, reason) for number, state, reason in rows}


def _result(job: Any) -> str | None:
    """What a job said at its end, where that was not the end of all work. The file is in a folder that only we knew."""
    from submitit.core.utils import pickle_load

    kind, said = pickle_load(job.paths.result_pickle)
    if kind == "error":
        lines = [line for line in str(said).splitlines() if line.strip()] or ["no word"]
        return f"job {job.job_id} failed: {lines[-1][:300]}"
    return f"job {job.job_id} was {said}" if said else None


def _executor(crew: EngineContext, options: Options) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            f"the engine slurm needs submitit, which cannot be imported: {error}", install_hint("submitit")
        ) from error
    # A folder of its own each time: submitit reads pickles there, which nobody can have prepared.
    logs = own_folder(own_folder(crew.folder / _LOGS) / uuid.uuid4().hex)
    try:
        interpreter = {f"{options.cluster}_python": shlex.join(python())}
        executor = submitit.AutoExecutor(str(logs), cluster=options.cluster, **interpreter)
    except RuntimeError as error:
        raise UsageError(
            f"Slurm was not found: {error}", "cluster: local tries the file out on this machine"
        ) from error
    said: dict[str, Any] = {
        "name": "prunetaylor",
        "timeout_min": options.minutes,
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus,
        "mem_gb": None if options.memory is None else options.memory / 1e9,
        "slurm_partition": options.partition,
        "slurm_account": options.account,
        "slurm_qos": options.qos,
        # A job's own step does not inherit it, since Slurm 22.05.
        "slurm_srun_args": [f"--cpus-per-task={options.cpus}"],
        "slurm_signal_delay_s": min(_WARNING, options.minutes * 20),
        # Its trial waits again at once; we submit another job for it.
        "slurm_additional_parameters": {"no-requeue": True},
    }
    executor.update_parameters(**{key: value for key, value in said.items() if value is not None})
    return executor
