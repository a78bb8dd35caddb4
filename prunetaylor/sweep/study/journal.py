"""Optuna's journal in a file, which survives a line that was cut off, by a full disk or a kill."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from prunetaylor.core.errors import OutputError
from prunetaylor.core.files import open_own

_LOCK_PATIENCE = 10  # seconds after which the journal's lock is taken from a process that died with it


def open_journal(path: Path) -> JournalStorage:
    """The storage in ``path``, which is made where it is missing. OutputError where it cannot be written or read."""
    try:
        open_own(path, "a").close()
        return JournalStorage(_Whole(path))
    except OSError as err:
        raise OutputError(f"cannot write {path}: {err.strerror}", "choose another folder with -o/--output") from err
    except (ValueError, LookupError, TypeError, AssertionError) as err:  # whatever Optuna stumbles over
        raise OutputError(
            f"{path} is damaged ({type(err).__name__}: {' '.join(str(err).split())[:200]})",
            "move it away: the same command then takes the trials that are done from their folders, and runs the rest",
        ) from err


class _Whole(JournalFileBackend):
    """Takes the rest of a line away that was never finished, before it becomes the beginning of the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own_lock = JournalFileSymlinkLock(str(path), grace_period=_LOCK_PATIENCE)
        super().__init__(str(path), self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._cut_off():
            self._own_lock.acquire()  # now nobody is in the middle of a line
            try:
                if self._cut_off():
                    self._shorten()
            finally:
                self._own_lock.release()
        super().append_logs(logs)

    def _cut_off(self) -> bool:
        with self._path.open("rb") as file:
            with contextlib.suppress(OSError):  # it is empty
                file.seek(-1, os.SEEK_END)
            return file.read(1) not in (b"", b"\n")

    def _shorten(self) -> None:
        with self._path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
