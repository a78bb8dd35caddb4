"""Processes on this machine: one for each job, with a GPU each. A process that a trial has killed is replaced."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from prunetaylor.core.config.asked import asked
from prunetaylor.core.config.schema import Section
from prunetaylor.pipeline.files.signals import Terminated, first_signal_terminates
from prunetaylor.runtime.cores import available, environment, share
from prunetaylor.runtime.python_process import python
from prunetaylor.sweep.engine_context import EngineContext, EngineFailed, EngineMonitor
from prunetaylor.sweep.folder import open_study
from prunetaylor.sweep.heartbeat import new_worker_name
from prunetaylor.sweep.study.study import Study
from prunetaylor.sweep.trial.files import trial_folder, write_error
from prunetaylor.sweep.worker import CLUSTER_SIGNALS, INTERRUPTED, STOPPED, WorkerSettings

_PAUSE = 0.2  # seconds between two readings of the workers' states
_GRACE = 20.0  # seconds that a worker has to end its trial after SIGTERM
_TAIL = 2000  # characters of a dead worker's output that are kept
_INTERVAL = 2.0  # seconds between two readings of the queue
STOPPED_BY_SIGNAL = "stopped by a signal"
_MAX_EARLY_ENDS = 3  # workers in a row that end before they claim a trial: something is wrong with all of them


class Options(Section):
    """The options of ``engine: {name: local}``."""

    jobs: Annotated[int, Field(ge=1)] | None = None
    """Trials at the same time; null: one per GPU, or one without GPUs."""
    cpus: Annotated[int, Field(ge=1)] | None = None
    """Cores of a trial; null: an equal share of this machine's cores, at most OMP_NUM_THREADS."""


@dataclass
class _Worker:
    name: str
    process: subprocess.Popen[str]
    output: IO[str]  # its stdout and stderr
    gpu: str | None

    def close(self) -> None:
        """Close the pipes of a worker that has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.output.close()

    def tail(self) -> str:
        """Return the last lines that the worker printed."""
        self.output.seek(0)
        return self.output.read()[-_TAIL:].strip()


def run(context: EngineContext, monitor: EngineMonitor) -> None:
    """Run trials until none waits. KeyboardInterrupt and the like stop the workers first."""
    _WorkerPool(context).work(monitor)


class _WorkerPool:
    """The workers on this machine."""

    def __init__(self, context: EngineContext) -> None:
        self.context = context
        self.gpus = _gpus(context)
        self.jobs: int = context.options.get("jobs") or max(1, len(self.gpus))
        self.threads: int = context.options.get("cpus") or share(self.jobs)
        self.study = open_study(context.folder, context.storage)
        self.workers: list[_Worker] = []
        self.early_ends = 0
        self.stopped = False

    def work(self, monitor: EngineMonitor) -> None:
        last_start = -_INTERVAL
        try:
            while True:
                monitor()
                ended = [worker for worker in self.workers if worker.process.poll() is not None]
                for worker in ended:
                    self._handle_exit(worker)
                if ended or time.monotonic() - last_start >= _INTERVAL:
                    self._start_workers()
                    last_start = time.monotonic()
                if not self.workers:
                    return
                time.sleep(_PAUSE)
        finally:
            _stop_workers(self.study, self.workers)

    def _start_workers(self) -> None:
        """Start a worker for each trial that waits, up to the number of jobs."""
        if self.stopped or len(self.workers) == self.jobs or not self.study.waiting or self.study.stop_reason:
            return
        busy = self.study.busy()
        without_trial = sum(worker.name not in busy for worker in self.workers)
        for _ in range(min(self.jobs - len(self.workers), self.study.waiting - without_trial)):
            used = [worker.gpu for worker in self.workers]
            gpu = min(self.gpus, key=used.count) if self.gpus else None
            self.workers.append(_start(self.context, self.jobs, self.threads, gpu))

    def _handle_exit(self, worker: _Worker) -> None:
        """Handle a worker that has ended: whatever its exit code, a trial that it still ran has failed."""
        self.workers.remove(worker)
        code = worker.process.returncode
        with contextlib.closing(worker):
            failed = _fail_trials(self.study, self.context, worker, code)
            self.stopped = self.stopped or (code == STOPPED and self.context.job is not None)
            if failed or self.study.has_claimed(worker.name) or not self.study.waiting or self.study.stop_reason:
                self.early_ends = 0
                return
            self.early_ends += 1
            if self.early_ends == _MAX_EARLY_ENDS:
                raise EngineFailed("workers of the sweep end before they run a trial", worker.tail())


class _NoMonitor:
    """Ignores everything."""

    def __call__(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def run_single_worker(context: EngineContext, cpus: int) -> str:
    """Run one worker on this node, as the jobs of clusters do, and return why it was stopped, or an empty text.

    A signal with which a cluster ends its jobs stops the worker, which returns its trial to the queue.
    """
    os.chdir(context.cwd)
    cpus = min(cpus, available())
    try:
        with first_signal_terminates(CLUSTER_SIGNALS):
            run(replace(context, options={"jobs": 1, "cpus": cpus}), _NoMonitor())
    except Terminated:
        return STOPPED_BY_SIGNAL
    return ""


def _start(context: EngineContext, jobs: int, threads: int, gpu: str | None) -> _Worker:
    name = new_worker_name()
    env = {**os.environ, **environment(threads)}
    if gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = gpu
    output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 it lives as long as the worker
    process = subprocess.Popen(
        python("-m", "prunetaylor.sweep.worker"),
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,  # this process passes Ctrl-C on
    )
    assert process.stdin is not None
    settings = WorkerSettings(
        folder=str(context.folder),
        storage=context.storage,
        worker=name,
        jobs=jobs,
        threads=threads,
        job=context.job,
        trust=context.trust.plain(),
        cache_dir=context.cache_dir,
    )
    with contextlib.suppress(BrokenPipeError):  # it has ended already, as its exit code will show
        process.stdin.write(settings.line())
        process.stdin.flush()
    return _Worker(name, process, output, gpu)


def _fail_trials(study: Study, context: EngineContext, worker: _Worker, code: int) -> bool:
    """Record that the trial of a worker that has ended failed. Return whether it had one."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        how += ", perhaps for lack of memory"
    cause = f"its process died ({how})" if code else "its code ended the process (os._exit(0), or the like)"
    numbers = study.fail_trials_of(worker.name, cause)
    for number in numbers:
        write_error(trial_folder(context.folder, number), cause, worker.tail())
    return bool(numbers)


def _stop_workers(study: Study, workers: list[_Worker]) -> None:
    """Send SIGTERM, and SIGKILL to workers that do not end in time; their trials return to the queue."""
    for worker in workers:
        worker.process.terminate()
    until = time.monotonic() + _GRACE
    for worker in workers:
        try:
            worker.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        study.return_trials_of(worker.name, INTERRUPTED)
        worker.close()
    workers.clear()


def _gpus(context: EngineContext) -> list[str]:
    """Return the GPUs for the workers, as CUDA_VISIBLE_DEVICES names them; none where the sweep's device is another."""
    if asked(context.device) not in (None, "cuda") or not _may_have_gpu():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _may_have_gpu() -> bool:
    """Return whether this machine may have a GPU, without torch, whose import takes seconds."""
    return bool(shutil.which("nvidia-smi")) or any(Path(d).exists() for d in ("/dev/nvidiactl", "/dev/kfd"))
