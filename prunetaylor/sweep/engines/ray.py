"""Tasks on a Ray cluster: each takes trials, one after another, until none waits.

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
from prunetaylor.runtime.cores import available
from prunetaylor.sweep.engine_context import EngineContext, Watch
from prunetaylor.sweep.engines import _driver
from prunetaylor.sweep.engines._posts import man
from prunetaylor.sweep.engines.local import alone
from prunetaylor.sweep.folder import open_study

_GRACE = 30.0  # seconds for tasks to give back their trials when they are cancelled
_REACH = 10.0  # seconds to reach the cluster's head
_EVERY = 10.0  # seconds between two looks at the cluster's room
_STORE = 100 * 2**20  # bytes of a local cluster's object store; trials put nothing there
_TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as the cluster has it"


class Options(Section):
    """Of ``engine: {name: ray}``."""

    jobs: Annotated[int, Field(ge=1)] | None = None
    """Trials at the same time; null: as many as the cluster has room for."""
    address: str | None = None
    """HOST:PORT of the cluster's head, or auto; null: a cluster of this machine, for this sweep only."""
    cpus: Annotated[float, Field(gt=0)] = 1.0
    """Cores that Ray sets aside for a trial, which computes with so many threads (one at least)."""
    gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPUs that Ray sets aside for a trial; a part of one lets trials share it."""


def run(crew: EngineContext, watch: Watch) -> None:
    """Work on the sweep until no trial waits. KeyboardInterrupt and the like end the tasks and go on."""
    _driver.run("ray", crew, watch)


def drive(crew: EngineContext, watch: Watch) -> None:
    """Start the tasks and others for those that are lost, in a process of its own."""
    options = Options(**crew.options)
    terminated = signal.getsignal(signal.SIGTERM)
    ray = _connected(options, crew.folder / "ray.log")
    signal.signal(signal.SIGTERM, terminated)  # Ray's own ends the process, and leaves the tasks where they are
    try:
        man(_Tasks(ray, options, crew), open_study(crew.folder, crew.storage), watch)
    finally:
        ray.shutdown()


class _Tasks:
    """A Ray cluster, and what runs on it for this sweep."""

    pause = 0.3

    def __init__(self, ray: Any, options: Options, crew: EngineContext) -> None:
        self.ray, self.options, self.crew = ray, options, crew
        self.threads = max(1, int(options.cpus))
        self.task = ray.remote(alone).options(
            num_cpus=options.cpus, num_gpus=options.gpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        self.room = options.jobs or self._room()
        if not self.room:
            raise UsageError(
                f"the Ray cluster has no {self._resource[1]:g} {self._resource[0]}s",
                "ask for less: cpus and gpus of engine",
            )
        self.looked = time.monotonic()

    def most(self) -> int:
        if self.options.jobs is None and time.monotonic() - self.looked >= _EVERY:
            self.room, self.looked = max(1, self._room()), time.monotonic()  # nodes come and go
        return self.room

    def start(self, post: str) -> Any:
        return self.task.remote(replace(self.crew, post=post), self.threads)

    def ended(self, posts: Mapping[str, Any]) -> Mapping[str, str | None]:
        if not posts:
            return {}
        done, _ = self.ray.wait(list(posts.values()), num_returns=len(posts), timeout=0)
        return {post: self._why(task) for post, task in posts.items() if task in done}

    def stop(self, posts: Mapping[str, Any]) -> None:
        for task in posts.values():
            self.ray.cancel(task)
        if posts:
            self.ray.wait(list(posts.values()), num_returns=len(posts), timeout=_GRACE)

    def _why(self, task: Any) -> str | None:
        """The reason for which a task ended; None where it had nothing left to do."""
        errors = self.ray.exceptions
        try:
            said: str = self.ray.get(task)
        except errors.NodeDiedError as error:
            found = re.search(r"Node IP: ([\w.:]+)", str(error))
            return f"Ray has lost a node{f' ({found[1]})' if found else ''}"
        except errors.OutOfMemoryError:
            return "Ray ended a task, as its node is short of memory"
        except errors.WorkerCrashedError:
            return "a worker process of Ray was killed"
        except errors.RayError as error:
            return f"a task of Ray failed: {' '.join(str(error).split())[-300:]}"
        return f"a task of Ray was {said}" if said else None

    @property
    def _resource(self) -> tuple[str, float]:
        return ("GPU", self.options.gpus) if self.options.gpus else ("CPU", self.options.cpus)

    def _room(self) -> int:
        """Trials that the cluster has room for at the same time."""
        resource, each = self._resource
        return int(self.ray.cluster_resources().get(resource, 0) // each)


def _connected(options: Options, log: Path) -> Any:
    """Ray, connected. ``log`` is where this process's stderr goes: some reasons stand nowhere else."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"the engine ray needs ray, which cannot be imported: {error}", install_hint("ray")) from error
    own: dict[str, Any] = {}
    if options.address is None:
        own = {"num_cpus": available(), "object_store_memory": _STORE, "include_dashboard": False}
        own["_node_ip_address"] = "127.0.0.1"
    _reach(options.address)
    before = log.stat().st_size if log.exists() else 0
    try:
        # Ray's workers import from the directory that its driver connects in: Python's own, not a folder of data.
        with contextlib.chdir(sys.prefix):
            ray.init(address=options.address or "local", log_to_driver=False, logging_level=logging.ERROR, **own)
    except Exception as error:  # Ray's own, gRPC's and Python's
        said = log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""
        raise refusal(error, options.address, said) from error
    return ray


def _reach(address: str | None) -> None:
    """UsageError where nothing listens at HOST:PORT: Ray itself tries for minutes."""
    found = re.fullmatch(r"(?:ray://)?([^/\s]+):(\d{1,5})", address or "")
    if found is None:
        return
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=_REACH).close()
    except (OSError, OverflowError) as error:
        raise refusal(error, address, "") from error


def refusal(error: Exception, address: str | None, log: str) -> UsageError:
    """Return what keeps us from the cluster at ``address``, and what to do about it; ``log`` is what Ray printed."""
    text = " ".join(str(error).split())[:400]
    where = f"the Ray cluster at {address}" if address else "Ray's own cluster of this machine"
    if type(error).__name__ == "AuthenticationError" or re.search("Unauthenticated|InvalidAuthToken", text + log):
        return UsageError(f"{where} wants a token, and this process has none or another", _TOKEN)
    if "ersion mismatch" in text:
        return UsageError(
            f"{where} has other versions: {text}", "use the same versions of Ray and Python here and there"
        )
    if address is None:
        return UsageError(f"Ray cannot start here: {text}", "try --engine local")
    remedy = "name the HOST:PORT of its head with --address, or start one: ray start --head"
    return UsageError(f"no Ray cluster answers at {address}: {text}", remedy)
