"""Optuna's journal in a file. It survives a last line that a full disk or a kill has cut off."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from prunetaylor.core.errors import OutputError, RunRefused
from prunetaylor.core.files import open_own
from prunetaylor.core.text import error_line

_LOCK_PATIENCE = 10  # seconds after which the journal's lock is removed, as the process that held it is dead


def open_journal(path: Path) -> JournalStorage:
    """Open the storage in ``path``, and create it where it is missing.

    Raises OutputError where the file cannot be read or written, RunRefused where something else is in its place.
    """
    if path.exists() and not path.is_file():  # opening a named pipe would wait for its other end
        raise RunRefused(
            f"{path} is no regular file",
            "remove it: the same command then reads finished trials from their folders, and runs the rest",
        )
    try:
        open_own(path, "a").close()
        return JournalStorage(_SelfRepairingFile(path))
    except OSError as err:
        raise OutputError(f"cannot write {path}: {err.strerror}", "choose another folder with -o/--output") from err
    except (ValueError, LookupError, TypeError, AssertionError) as err:  # Optuna raises these for damaged lines
        raise OutputError(
            f"{path} is damaged ({error_line(err, 200)})",
            "move it away: the same command then reads finished trials from their folders, and runs the rest",
        ) from err


class _SelfRepairingFile(JournalFileBackend):
    """Removes a line that was never finished, before the next one is appended to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._own_lock = JournalFileSymlinkLock(str(path), grace_period=_LOCK_PATIENCE)
        super().__init__(str(path), self._own_lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._is_cut_off():
            self._own_lock.acquire()  # now no process is in the middle of a line
            try:
                if self._is_cut_off():
                    self._remove_last_line()
            finally:
                self._own_lock.release()
        super().append_logs(logs)

    def _is_cut_off(self) -> bool:
        with self._path.open("rb") as file:
            with contextlib.suppress(OSError):  # it is empty
                file.seek(-1, os.SEEK_END)
            return file.read(1) not in (b"", b"\n")

    def _remove_last_line(self) -> None:
        with self._path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
