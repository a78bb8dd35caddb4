"""Tasks on a Ray cluster: each runs trials, one after another, until none waits.

The sweep's folder, the checkpoint and the data must be on a file system that the nodes share.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from prunetaylor.core.config.schema import Section
from prunetaylor.core.errors import UsageError
from prunetaylor.core.requirements import install_hint
from prunetaylor.core.text import one_line
from prunetaylor.runtime.cores import available
from prunetaylor.sweep.engine_context import EngineContext, EngineMonitor
from prunetaylor.sweep.engines import _driver
from prunetaylor.sweep.engines._jobs import run_jobs
from prunetaylor.sweep.engines.local import run_single_worker
from prunetaylor.sweep.folder import open_study

_GRACE = 30.0  # seconds for cancelled tasks to return their trials
_CONNECT_TIMEOUT = 10.0  # seconds to reach the cluster's head
_INTERVAL = 10.0  # seconds between two readings of the cluster's size
_STORE = 100 * 2**20  # bytes of a local cluster's object store, which trials do not use
_TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as the cluster has it"


class Options(Section):
    """The options of ``engine: {name: ray}``."""

    jobs: Annotated[int, Field(ge=1)] | None = None
    """Trials at the same time; null: as many as fit on the cluster."""
    address: str | None = None
    """HOST:PORT of the cluster's head, or auto; null: a cluster on this machine, for this sweep only."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Cores that Ray reserves for a trial; the trial uses as many threads (at least one)."""
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPUs that Ray reserves for a trial; with a fraction, trials share a GPU."""


def run(context: EngineContext, monitor: EngineMonitor) -> None:
    """Run trials until none waits. KeyboardInterrupt and the like stop the tasks first."""
    _driver.run("ray", context, monitor)


def drive(context: EngineContext, monitor: EngineMonitor) -> None:
    """Start tasks, and new ones for those that are lost; this runs in the driver's process."""
    options = Options(**context.options)
    terminated = signal.getsignal(signal.SIGTERM)
    ray = _connected(options, context.folder / "ray.log")
    signal.signal(signal.SIGTERM, terminated)  # Ray's own handler ends the process without stopping the tasks
    try:
        run_jobs(_Tasks(ray, options, context), open_study(context.folder, context.storage), monitor)
    finally:
        ray.shutdown()


class _Tasks:
    """A Ray cluster, and this sweep's tasks on it."""

    pause = 0.3

    def __init__(self, ray: Any, options: Options, context: EngineContext) -> None:
        self.ray, self.options, self.context = ray, options, context
        self.threads = max(1, int(options.cpus))
        self.task = ray.remote(run_single_worker).options(
            num_cpus=options.cpus, num_gpus=options.gpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        self.capacity = options.jobs or self._capacity()
        if not self.capacity:
            raise UsageError(
                f"the Ray cluster has no {self._resource[1]:g} {self._resource[0]}s",
                "lower cpus or gpus of the engine",
            )
        self.last_reading = time.monotonic()

    def max_jobs(self) -> int:
        if self.options.jobs is None and time.monotonic() - self.last_reading >= _INTERVAL:
            self.capacity, self.last_reading = max(1, self._capacity()), time.monotonic()  # nodes come and go
        return self.capacity

    def start(self, job: str) -> Any:
        return self.task.remote(replace(self.context, job=job), self.threads)

    def ended(self, jobs: Mapping[str, Any]) -> Mapping[str, str | None]:
        if not jobs:
            return {}
        ended, _ = self.ray.wait(list(jobs.values()), num_returns=len(jobs), timeout=0)
        return {job: self._end_reason(task) for job, task in jobs.items() if task in ended}

    def stop(self, jobs: Mapping[str, Any]) -> None:
        for task in jobs.values():
            self.ray.cancel(task)
        if jobs:
            self.ray.wait(list(jobs.values()), num_returns=len(jobs), timeout=_GRACE)

    def _end_reason(self, task: Any) -> str | None:
        """Return why a task ended; None where no trial waited any more."""
        errors = self.ray.exceptions
        try:
            reason: str = self.ray.get(task)
        except errors.NodeDiedError as error:
            address = re.search(r"Node IP: ([\w.:]+)", str(error))
            return f"Ray has lost a node{f' ({address[1]})' if address else ''}"
        except errors.OutOfMemoryError:
            return "Ray ended a task: its node ran out of memory"
        except errors.WorkerCrashedError:
            return "a worker process of Ray was killed"
        except errors.RayError as error:
            return f"a task of Ray failed: {one_line(error)[-300:]}"
        return f"a task of Ray was {reason}" if reason else None

    @property
    def _resource(self) -> tuple[str, float]:
        return ("GPU", self.options.gpus) if self.options.gpus else ("CPU", self.options.cpus)

    def _capacity(self) -> int:
        """Return how many trials fit on the cluster at the same time."""
        resource, each = self._resource
        return int(self.ray.cluster_resources().get(resource, 0) // each)


def _connected(options: Options, log: Path) -> Any:
    """Connect to Ray. ``log`` has this process's stderr, where Ray prints some of the reasons for a failure."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"the engine ray needs ray, which cannot be imported: {error}", install_hint("ray")) from error
    own: dict[str, Any] = {}
    if options.address is None:
        own = {"num_cpus": available(), "object_store_memory": _STORE, "include_dashboard": False}
        own["_node_ip_address"] = "127.0.0.1"
    _check_address(options.address)
    before = log.stat().st_size if log.exists() else 0
    try:
        # Ray's workers import from the directory in which the driver connects: Python's own, not a folder of data.
        with contextlib.chdir(sys.prefix):
            ray.init(address=options.address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray's own, gRPC's and Python's
        output = log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""
        raise connection_error(error, options.address, output) from error
    return ray


def _check_address(address: str | None) -> None:
    """Raise UsageError where nothing listens at HOST:PORT, as Ray itself would try for minutes."""
    parts = re.fullmatch(r"(?:ray://)?([^/\s]+):(\d{1,5})", address or "")
    if parts is None:
        return
    try:
        socket.create_connection((parts[1].strip("[]"), int(parts[2])), timeout=_CONNECT_TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise connection_error(error, address, "") from error


def connection_error(error: Exception, address: str | None, log: str) -> UsageError:
    """Explain why the cluster at ``address`` cannot be used, and what to do; ``log`` is the text that Ray printed."""
    text = one_line(error)[:400]
    where = f"the Ray cluster at {address}" if address else "Ray on this machine"
    if type(error).__name__ == "AuthenticationError" or re.search("Unauthenticated|InvalidAuthToken", text + log):
        return UsageError(f"{where} requires a token, and this process has none or another", _TOKEN)
    if "ersion mismatch" in text:
        return UsageError(
            f"{where} has other versions: {text}", "use the same versions of Ray and Python on both sides"
        )
    if address is None:
        return UsageError(f"Ray cannot start on this machine: {text}", "try --engine local")
    remedy = "name the HOST:PORT of its head with --address, or start one: ray start --head"
    return UsageError(f"no Ray cluster answers at {address}: {text}", remedy)
