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
from typing import IO, Annotated

from pydantic import Field

from prunetaylor.config.schema import Section
from prunetaylor.errors import PruneTaylorError
from prunetaylor.processes import python
from prunetaylor.sweep.alive import new_name
from prunetaylor.sweep.crew import Crew, Watch
from prunetaylor.sweep.folder import open_study
from prunetaylor.sweep.study import Study
from prunetaylor.sweep.trial_files import trial_folder, write_error
from prunetaylor.sweep.worker import DONE, INTERRUPTED, REPLACE, Task

_PAUSE = 0.2  # seconds between two looks at the workers
_GRACE = 20.0  # seconds that a worker has to take its trial down after SIGTERM
_TAIL = 2000  # characters of what a worker that died said last
_DEATHS = 3  # workers in a row that die before they have a trial: there is something wrong with all of them


class Options(Section):
    """Of ``engine: {name: local}``."""

    jobs: Annotated[int, Field(ge=1)] | None = None
    """Trials at the same time; null: one a GPU, one where there is none."""


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


def run(crew: Crew, watch: Watch) -> None:
    """Work on the sweep until no trial waits. KeyboardInterrupt and the like end the workers and go on."""
    gpus = _gpus(crew)
    jobs = crew.options.get("jobs") or max(1, len(gpus))
    study = open_study(crew.folder, crew.storage)
    workers: list[_Worker] = []
    deaths = 0
    try:
        for i in range(min(jobs, study.waiting)):
            workers.append(_start(crew, jobs, gpus[i % len(gpus)] if gpus else None))
        while workers:
            watch()
            for worker in list(workers):
                code = worker.process.poll()
                if code is None:
                    continue
                workers.remove(worker)
                with contextlib.closing(worker):
                    if code not in (DONE, REPLACE):
                        deaths = 0 if _give_up(study, crew, worker, code) else deaths + 1
                    if deaths == _DEATHS:
                        raise PruneTaylorError("workers of the sweep die before they have a trial", worker.tail())
                    if code != DONE and study.waiting and not study.stopping:
                        workers.append(_start(crew, jobs, worker.gpu))
            time.sleep(_PAUSE)
    finally:
        _end(study, workers)


def alone(crew: Crew) -> None:
    """One worker, wherever this is called: what the other engines start on their nodes."""
    os.chdir(crew.cwd)
    run(replace(crew, options={"jobs": 1}), lambda: None)


def _start(crew: Crew, jobs: int, gpu: str | None) -> _Worker:
    name = new_name()
    env = dict(os.environ)
    threads = str(max(1, _cores() // jobs))
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        env.setdefault(variable, threads)
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
    task = Task(str(crew.folder), crew.storage, name, jobs, crew.trust.plain())
    with contextlib.suppress(BrokenPipeError):  # it is gone already; the next look at it tells
        process.stdin.write(task.line())
        process.stdin.flush()
    return _Worker(name, process, said, gpu)


def _give_up(study: Study, crew: Crew, worker: _Worker, code: int) -> bool:
    """The trial of a worker that did not end by itself has failed; whether it had one."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if code == -signal.SIGKILL:
        how += ", as the system does where memory is short"
    cause = f"its process died ({how})"
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
        study.lost(worker.name, INTERRUPTED)
        worker.close()


def _gpus(crew: Crew) -> list[str]:
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
