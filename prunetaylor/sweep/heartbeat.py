"""The heartbeat of a worker: a file in the sweep's folder that the worker keeps locked and touches.

On one machine the lock shows at once that a worker has ended, however it ended. From another machine, or on a file
system without locks, a worker counts as gone when it has not touched its file for PATIENCE seconds by the file system's
own clock.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from prunetaylor.core.errors import OutputError
from prunetaylor.core.files import open_own, own_folder
from prunetaylor.pipeline.files.lock import try_lock

INTERVAL = 5.0  # seconds
PATIENCE = 60.0
_PATIENCE_IF_REPORTED = 3 * INTERVAL
"""The patience with a worker that its engine reports as gone; the engine errs where only the network failed."""
_FOLDER = "workers"


def new_worker_name() -> str:
    """Return a name that no other worker has; it starts with the machine's name."""
    return f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Heartbeat:
    """Shows other processes that ``worker`` is running, as long as the context is open."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.path = folder / _FOLDER / worker
        self._file: IO[str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._touch_regularly, daemon=True)

    def __enter__(self) -> Self:
        own_folder(self.path.parent)
        hidden = self.path.with_name(f".{uuid.uuid4().hex}")
        self._file = open_own(hidden, "w")
        try_lock(self._file)
        hidden.rename(self.path)  # a file that others see before it is locked would look like a dead worker's
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.path.unlink()
        if self._file is not None:
            self._file.close()

    def _touch_regularly(self) -> None:
        while not self._over.wait(INTERVAL):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def is_alive(folder: Path, worker: str, *, reported_gone: bool = False) -> bool:
    """Return whether a worker is running, as far as this machine can see.

    With ``reported_gone`` the worker's engine says that it is gone. A lock on its file then proves nothing, as shared
    file systems keep the locks of a machine that is lost.
    """
    path = folder / _FOLDER / worker
    here = worker.startswith(f"{_host()}-")
    try:
        with open_own(path, "r+") as file:
            if here or not reported_gone:
                if not try_lock(file):
                    return True
                if here:
                    return False
            return _age(path) < (_PATIENCE_IF_REPORTED if reported_gone else PATIENCE)
    except (OSError, OutputError):  # the worker removed its file when it ended; a link belongs to no worker
        return False


def live_workers(folder: Path) -> list[str]:
    """Return the names of the workers that are running, and remove the files of dead ones."""
    names = []
    for path in sorted((folder / _FOLDER).glob("*-*")):
        if is_alive(folder, path.name):
            names.append(path.name)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return names


def _age(path: Path) -> float:
    """Return the seconds since the file was touched, by the clock that stamps files."""
    now = path.with_name(f".{uuid.uuid4().hex}")
    now.touch()
    try:
        return now.stat().st_mtime - path.stat().st_mtime
    finally:
        now.unlink()


def _host() -> str:
    return socket.gethostname().replace("/", "_")
