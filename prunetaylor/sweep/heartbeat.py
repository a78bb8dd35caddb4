"""Whether a worker is still there: a file that it holds locked and touches, in the sweep's folder.

On one machine the lock tells at once, however the worker ended. From another machine, or on a file system without
locks, a worker counts as gone when it has not touched its file for PATIENCE seconds by the file system's own clock.
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
from prunetaylor.pipeline.files.run_folder import locked

BEAT = 5.0  # seconds
PATIENCE = 60.0
_TOLD = 3 * BEAT
"""The same for a worker that its engine says is gone: it may be wrong, where only the network was."""
_ROOM = "workers"


def new_name() -> str:
    """A name for a worker that no other has; it starts with the machine's."""
    return f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Alive:
    """Says that ``worker`` is there while its context is open."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.path = folder / _ROOM / worker
        self._file: IO[str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        own_folder(self.path.parent)
        unseen = self.path.with_name(f".{uuid.uuid4().hex}")
        self._file = open_own(unseen, "w")
        locked(self._file)
        unseen.rename(self.path)  # seen without its lock, it would count as left by the dead
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self.path.unlink()
        if self._file is not None:
            self._file.close()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(self.path)


def is_alive(folder: Path, worker: str, *, told_gone: bool = False) -> bool:
    """Whether a worker is at work, as far as can be told from here.

    ``told_gone``: its engine says that it is gone. A lock on its file tells nothing then, as shared file systems keep
    those of a machine that is lost.
    """
    path = folder / _ROOM / worker
    here = worker.startswith(f"{_host()}-")
    try:
        with open_own(path, "r+") as file:
            if here or not told_gone:
                if not locked(file):
                    return True
                if here:
                    return False
            return _age(path) < (_TOLD if told_gone else PATIENCE)
    except (OSError, OutputError):  # it took its file away when it left; a link is no worker's
        return False


def others(folder: Path) -> list[str]:
    """The workers that are at work; what the dead left behind is taken away."""
    found = []
    for path in sorted((folder / _ROOM).glob("*-*")):
        if is_alive(folder, path.name):
            found.append(path.name)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return found


def _age(path: Path) -> float:
    """Seconds since the file was touched, by the clock that stamps files."""
    now = path.with_name(f".{uuid.uuid4().hex}")
    now.touch()
    try:
        return now.stat().st_mtime - path.stat().st_mtime
    finally:
        now.unlink()


def _host() -> str:
    return socket.gethostname().replace("/", "_")
