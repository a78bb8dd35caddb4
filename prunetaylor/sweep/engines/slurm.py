"""Jobs of a Slurm cluster, through submitit: each takes trials, one after another, until none waits.

The sweep's folder, the checkpoint and the data must be on a file system that the nodes share.
"""

from __future__ import annotations

import shlex
import time
from typing import Annotated, Any, Literal

from pydantic import Field

from prunetaylor.config.schema import Section, Size
from prunetaylor.errors import PruneTaylorError, UsageError
from prunetaylor.files import own_folder
from prunetaylor.processes import python, safe_path
from prunetaylor.requirements import install_hint
from prunetaylor.sweep.crew import Crew, Watch
from prunetaylor.sweep.engines.local import alone

_PAUSE = 0.5  # seconds between two looks at the jobs
_LOGS = "slurm"
_TAIL = 1500  # characters of what a job that failed said last


class Options(Section):
    """Of ``engine: {name: slurm}``."""

    jobs: Annotated[int, Field(ge=1)] = 1
    """Jobs, each with a trial at a time."""
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    minutes: Annotated[int, Field(ge=1)] = 60 * 24
    """After which Slurm ends a job; its trial can be run again."""
    cpus: Annotated[int, Field(ge=1)] = 1
    """Cores of a job."""
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of a job: a trial uses one at most."""
    memory: Size | None = None
    """Of a job, such as 16GiB; null: what the cluster gives by itself."""
    cluster: Literal["slurm", "local"] = "slurm"
    """local: processes on this machine, to try a file out."""


def run(crew: Crew, watch: Watch) -> None:
    """Submit the jobs, wait for them, and take back those that are left if this process is interrupted."""
    options = Options(**crew.options)
    executor = _executor(crew, options)
    jobs: list[Any] = []
    try:
        with safe_path():
            jobs += [executor.submit(alone, crew) for _ in range(options.jobs)]
        left = list(jobs)
        while left:
            watch()
            left = [job for job in left if not job.done()]
            time.sleep(_PAUSE)
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    failed = [job for job in jobs if job.exception() is not None]
    if failed:
        text = " ".join(str(failed[0].exception()).split())[-_TAIL:]
        raise PruneTaylorError(f"{len(failed)} of {len(jobs)} jobs failed: {text}", f"see {crew.folder / _LOGS}")


def _executor(crew: Crew, options: Options) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            f"the engine slurm needs submitit, which cannot be imported: {error}", install_hint("submitit")
        ) from error
    try:
        interpreter = {f"{options.cluster}_python": shlex.join(python())}
        executor = submitit.AutoExecutor(str(own_folder(crew.folder / _LOGS)), cluster=options.cluster, **interpreter)
    except RuntimeError as error:
        raise UsageError(f"no Slurm is there: {error}", "cluster: local tries the file out on this machine") from error
    said: dict[str, Any] = {
        "name": "prunetaylor",
        "timeout_min": options.minutes,
        "cpus_per_task": options.cpus,
        "gpus_per_node": options.gpus,
        "mem_gb": None if options.memory is None else options.memory / 1e9,
        "slurm_partition": options.partition,
        "slurm_account": options.account,
        "slurm_qos": options.qos,
    }
    executor.update_parameters(**{key: value for key, value in said.items() if value is not None})
    return executor
