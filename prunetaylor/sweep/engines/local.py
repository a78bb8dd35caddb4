"""Processes on this machine: one a job, GPUs handed out one a process, each replaced where a trial takes it down."""

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
from types import FrameType
from typing import IO, Annotated

from pydantic import Field

from prunetaylor.core.config.schema import Section
from prunetaylor.pipeline.files.signals import Terminated
from prunetaylor.runtime.cores import available, environment, share
from prunetaylor.runtime.python_process import python
from prunetaylor.sweep.engine_context import EngineContext, EngineFailed, Watch
from prunetaylor.sweep.folder import open_study
from prunetaylor.sweep.heartbeat import new_name
from prunetaylor.sweep.study.study import Study
from prunetaylor.sweep.trial.files import trial_folder, write_error
from prunetaylor.sweep.worker import INTERRUPTED, SIGNALS, STOPPED, Task

_PAUSE = 0.2  # seconds between two looks at the workers
_GRACE = 20.0  # seconds that a worker has to take its trial down after SIGTERM
_TAIL = 2000  # characters of what a worker that died said last
_EVERY = 2.0  # seconds between two looks at what waits
STOPPED_BY_SIGNAL = "stopped by a signal"
_DEATHS = 3  # workers in a row that die before they have a trial: there is something wrong with all of them


class Options(Section):
    """Of ``engine: {name: local}``."""

    jobs: Annotated[int, Field(ge=1)] | None = None
    """Trials at the same time; null: one a GPU, one where there is none."""
    cpus: Annotated[int, Field(ge=1)] | None = None
    """Cores that a trial computes with; null: an equal share of this machine's, OMP_NUM_THREADS at most."""


@dataclass
class _Worker:
    name: str
    process: subprocess.Popen[str]
    said: IO[str]  # its stdout and stderr
    gpu: str | None

    def close(self) -> None:
        """Of a process that has ended."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.said.close()

    def tail(self) -> str:
        self.said.seek(0)
        return self.said.read()[-_TAIL:].strip()


def run(crew: EngineContext, watch: Watch) -> None:
    """Work on the sweep until no trial waits. KeyboardInterrupt and the like end the workers and go on."""
    _Team(crew).work(watch)


class _Team:
    """The workers of this machine."""

    def __init__(self, crew: EngineContext) -> None:
        self.crew = crew
        self.gpus = _gpus(crew)
        self.jobs: int = crew.options.get("jobs") or max(1, len(self.gpus))
        self.threads: int = crew.options.get("cpus") or share(self.jobs)
        self.study = open_study(crew.folder, crew.storage)
        self.workers: list[_Worker] = []
        self.idle_ends = 0
        self.stopped = False

    def work(self, watch: Watch) -> None:
        looked = -_EVERY
        try:
            while True:
                watch()
                ended = [worker for worker in self.workers if worker.process.poll() is not None]
                for worker in ended:
                    self._see_off(worker)
                if ended or time.monotonic() - looked >= _EVERY:
                    self._hire()
                    looked = time.monotonic()
                if not self.workers:
                    return
                time.sleep(_PAUSE)
        finally:
            _end(self.study, self.workers)

    def _hire(self) -> None:
        """Start as many workers as trials wait for, and as there is room for."""
        if self.stopped or len(self.workers) == self.jobs or not self.study.waiting or self.study.stopping:
            return
        busy = self.study.busy()
        idle = sum(worker.name not in busy for worker in self.workers)
        for _ in range(min(self.jobs - len(self.workers), self.study.waiting - idle)):
            used = [worker.gpu for worker in self.workers]
            gpu = min(self.gpus, key=used.count) if self.gpus else None
            self.workers.append(_start(self.crew, self.jobs, self.threads, gpu))

    def _see_off(self, worker: _Worker) -> None:
        """A worker has ended: whatever its exit code says, a trial that it holds has not come to its end."""
        self.workers.remove(worker)
        code = worker.process.returncode
        with contextlib.closing(worker):
            held = _give_up(self.study, self.crew, worker, code)
            self.stopped = self.stopped or (code == STOPPED and self.crew.post is not None)
            if held or self.study.has_taken(worker.name) or not self.study.waiting or self.study.stopping:
                self.idle_ends = 0
                return
            self.idle_ends += 1
            if self.idle_ends == _DEATHS:
                raise EngineFailed("workers of the sweep die before they have a trial", worker.tail())


class Unwatched:
    """Nobody looks on."""

    def __call__(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


def alone(crew: EngineContext, cpus: int) -> str:
    """One worker, wherever this is called: what the other engines start on their nodes. Returns how it ended.

    A signal with which a cluster ends its tasks ends the worker, which gives its trial back.
    """
    os.chdir(crew.cwd)
    cpus = min(cpus, available())
    before = {number: signal.signal(number, _stop) for number in SIGNALS}
    try:
        run(replace(crew, options={"jobs": 1, "cpus": cpus}), Unwatched())
    except Terminated:
        return STOPPED_BY_SIGNAL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return ""


def _stop(number: int, frame: FrameType | None) -> None:
    for other in SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # the worker is being ended already
    raise Terminated


def _start(crew: EngineContext, jobs: int, threads: int, gpu: str | None) -> _Worker:
    name = new_name()
    env = {**os.environ, **environment(threads)}
    if gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = gpu
    said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 as long as the worker
    process = subprocess.Popen(
        python("-m", "prunetaylor.sweep.worker"),
        stdin=subprocess.PIPE,
        stdout=said,
        stderr=subprocess.STDOUT,
        text=True,
        env=env,
        start_new_session=True,  # Ctrl-C is for this process to pass on
    )
    assert process.stdin is not None
    task = Task(str(crew.folder), crew.storage, name, jobs, threads, crew.post, crew.trust.plain())
    with contextlib.suppress(BrokenPipeError):  # it is gone already; the next look at it tells
        process.stdin.write(task.line())
        process.stdin.flush()
    return _Worker(name, process, said, gpu)


def _give_up(study: Study, crew: EngineContext, worker: _Worker, code: int) -> bool:
    """A trial that a worker held as it ended has failed; whether it had one."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        how += ", as the system does where memory is short"
    cause = f"its process died ({how})" if code else "its code ended the process (os._exit(0), or the like)"
    held = study.lost(worker.name, cause)
    for number in held:
        write_error(trial_folder(crew.folder, number), cause, worker.tail())
    return bool(held)


def _end(study: Study, workers: list[_Worker]) -> None:
    """SIGTERM, and SIGKILL for those that do not obey; what they held can be run again."""
    for worker in workers:
        worker.process.terminate()
    until = time.monotonic() + _GRACE
    for worker in workers:
        try:
            worker.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()
        study.release(worker.name, INTERRUPTED)
        worker.close()
    workers.clear()


def _gpus(crew: EngineContext) -> list[str]:
    """The GPUs to hand out, as CUDA_VISIBLE_DEVICES names them; none where the sweep's device is another."""
    if crew.device not in ("auto", "cuda") or not _may_have_gpu():
        return []
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name for name in said.split(",") if name.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _may_have_gpu() -> bool:
    """Without asking torch, which takes seconds."""
    return bool(shutil.which("nvidia-smi")) or any(Path(d).exists() for d in ("/dev/nvidiactl", "/dev/kfd"))
