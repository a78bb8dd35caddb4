"""Tasks on a Ray cluster: each takes trials, one after another, until none waits.

The sweep's folder, the checkpoint and the data must be on a file system that the nodes share.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Annotated, Any

from pydantic import Field

from prunetaylor.config.schema import Section
from prunetaylor.errors import PruneTaylorError, UsageError
from prunetaylor.requirements import install_hint
from prunetaylor.sweep.crew import Crew, Watch
from prunetaylor.sweep.engines.local import alone

_PAUSE = 0.3  # seconds between two looks at the tasks


class Options(Section):
    """Of ``engine: {name: ray}``."""

    jobs: Annotated[int, Field(ge=1)] | None = None
    """Trials at the same time; null: as many as the cluster has room for."""
    address: str | None = None
    """HOST:PORT of the cluster's head, or auto; null: a cluster of this machine, for this sweep only."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Cores that Ray sets aside for a trial."""
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPUs that Ray sets aside for a trial; a part of one lets trials share it."""


def run(crew: Crew, watch: Watch) -> None:
    """Start the tasks, wait for them, and take back those that are left if this process is interrupted."""
    options = Options(**crew.options)
    ray = _connected(options)
    left: list[Any] = []
    failures: list[Exception] = []
    try:
        task = ray.remote(alone).options(
            num_cpus=options.cpus, num_gpus=options.gpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        left += [task.remote(crew) for _ in range(options.jobs or _room(ray, options))]
        while left:
            watch()
            done, left = ray.wait(left, timeout=_PAUSE)
            for one in done:
                try:
                    ray.get(one)
                except ray.exceptions.RayError as error:  # its trial is given up by whoever finds it without a worker
                    failures.append(error)
    finally:
        for one in left:
            ray.cancel(one)
        ray.shutdown()
    if failures:
        text = " ".join(str(failures[0]).split())[-500:]
        raise PruneTaylorError(f"{len(failures)} tasks of the Ray cluster failed: {text}", "look at the nodes' logs")


def _room(ray: Any, options: Options) -> int:
    """Trials that the cluster has room for at the same time."""
    resource, each = ("GPU", options.gpus) if options.gpus else ("CPU", options.cpus)
    room = int(ray.cluster_resources().get(resource, 0) // each)
    if not room:
        raise UsageError(f"the Ray cluster has no {each:g} {resource}s", "ask for less: cpus and gpus of engine")
    return room


def _connected(options: Options) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"the engine ray needs ray, which cannot be imported: {error}", install_hint("ray")) from error
    try:
        # Ray's workers import from the directory that its driver connects in: Python's own, not a folder of data.
        with contextlib.chdir(sys.prefix):
            ray.init(address=options.address or "local", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:300]
        raise UsageError(
            f"no Ray cluster answers at {options.address}: {text}", "start one with `ray start`"
        ) from error
    return ray
