"""The folder of a run. Its files appear when the run is complete; a run that fails leaves its saved state only.

The files are written into ``FOLDER/.partial`` and moved up together at the end, ``report.json`` last: a folder with a
report is a complete run. The folder itself is made at the start, so that one that cannot be written to costs no work.
``--resume`` continues from the state saved in ``.partial``, which is deleted when the run is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from prunetaylor.core import files
from prunetaylor.core.errors import OutputError, OutputPlaceError, cannot_write
from prunetaylor.core.json_file import read_json
from prunetaylor.pipeline.files.lock import try_lock
from prunetaylor.pipeline.files.signals import deferred_signals

REPORT = "report.json"
LOG = "log.jsonl"
STATE = "state.pt"
MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
HTML_FILE = "report.html"
STAGING = ".partial"
_HOME = Path("runs")


class FolderInUse(OutputError):
    """Another run is writing to the folder."""


class RunFolder:
    """The folder of one run, as a context: without ``commit`` it removes everything that it made."""

    def __init__(self, path: Path, made: list[Path], log: IO[str] | None) -> None:
        self.path = path
        self._made = made  # folders that were not there before, outermost first
        self._log = log  # None: the run is finished already
        self._complete = log is None

    @classmethod
    def create(cls, path: Path | None, name: str, *, force: bool = False, resume: bool = False) -> RunFolder:
        """Make the folder ``path``, or ``runs/NAME-N`` with the next free N where ``path`` is None.

        With ``resume`` it is the folder of the run that began there, without a path the last ``runs/NAME-N``: it is
        ``finished`` or has a ``state``, or it is fresh where there was no run.

        Raises:
            OutputError: the folder cannot be written, is in use, or holds something already. ``force`` replaces a
                finished run when the new one is complete.
        """
        made: list[Path] = []
        try:
            if path is None:
                path = (_last(name) if resume else None) or _numbered(name, made)
            finished, was_run = _prepare(path, made, force, resume), _is_run(path)
            log = None if finished else _open_staging(path, force, resume)
            if log is not None and _is_run(path) and not was_run and not force:
                # Another run ended between the check of the folder and its lock.
                log.close()
                shutil.rmtree(path / STAGING, ignore_errors=True)
                _prepare(path, made, force, resume)
                log = None
            return cls(path, made, log)
        except OSError as err:
            _remove_empty(made)
            raise cannot_write(path or _HOME, err, "choose another folder with -o/--output") from err
        except OutputError:
            _remove_empty(made)
            raise

    @property
    def finished(self) -> bool:
        """True if the run was complete before this one began."""
        return self._log is None

    @property
    def state(self) -> Path | None:
        """The saved state; None if there is none."""
        state = self.stage(STATE)
        return state if state.exists() else None

    def save_state(self, write: Callable[[IO[bytes]], None]) -> None:
        """Replace the saved state as a whole or not at all. OutputError if it cannot be written."""
        files.write_stream(
            self.stage(STATE),
            write,
            failures=(OSError, RuntimeError),  # torch's own writer raises the latter
            remedy="free some space, then continue from the last state with --resume",
        )

    def report(self) -> dict[str, Any]:
        """Return the report of a finished run."""
        report: dict[str, Any] = read_json(self.path / REPORT)
        return report

    def require(self, need: int) -> None:
        """Raise OutputError if the disk has fewer than ``need`` bytes left: before the work, not after it."""
        free = shutil.disk_usage(self.path).free
        if free < need:
            raise OutputError(
                f"the disk of {self.path} has {free / 1e6:.1f} MB left, and the run needs {need / 1e6:.1f} MB",
                "free some space, or choose another folder with -o/--output",
            )

    def stage(self, name: str) -> Path:
        """Return the path to write the run's file ``name`` to; ``commit`` moves it into the folder."""
        return self.path / STAGING / name

    def write_text(self, name: str, text: str) -> None:
        """Stage a text file. OutputError if it cannot be written."""
        files.write_text(self.stage(name), text)

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to log.jsonl: the time in seconds since 1970, the event, its fields. May raise OutputError."""
        assert self._log is not None
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, allow_nan=False)
        with _naming(self.stage(LOG)):
            self._log.write(line + "\n")
            self._log.flush()

    def commit(self) -> None:
        """Move all staged files into the folder. The run is then complete."""
        assert self._log is not None
        names = {file.name for file in (self.path / STAGING).iterdir()} - {STATE}
        staged = [self.stage(name) for name in sorted(names, key=lambda name: name == REPORT)]
        with deferred_signals(), _naming(self.path):
            (self.path / REPORT).unlink(missing_ok=True)
            for file in staged:
                if file.is_dir():  # a tracker's; that of the run before is in the way
                    _remove(self.path / file.name)
                file.replace(self.path / file.name)
            files.sync(self.path)
            self._complete = True
            self._log.close()
            self.stage(STATE).unlink(missing_ok=True)
            (self.path / STAGING).rmdir()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        if self._complete:
            return
        assert self._log is not None
        with deferred_signals():
            with contextlib.suppress(OSError):  # a full disk refuses the flush
                self._log.close()
            if self.state is not None:
                _leave_state(self.path / STAGING)
                return
            shutil.rmtree(self.path / STAGING, ignore_errors=True)
            _remove_empty(self._made)


def _numbered(name: str, made: list[Path]) -> Path:
    """Make and return ``runs/NAME-N`` with N one more than the largest so far; the folder reserves the number."""
    _make_all(_HOME, made)
    number = max(_numbers(name), default=0)
    while True:
        number += 1
        path = _HOME / f"{_safe(name)}-{number}"
        try:
            path.mkdir()
        except FileExistsError:  # another run was faster
            continue
        made.append(path)
        return path


def _last(name: str) -> Path | None:
    """Return the newest of ``runs/NAME-N``, if there is one."""
    numbers = _numbers(name)
    return _HOME / f"{_safe(name)}-{max(numbers)}" if numbers else None


def _numbers(name: str) -> list[int]:
    """Return the numbers N of all ``runs/NAME-N``."""
    if not _HOME.is_dir():
        return []
    matches = (re.fullmatch(rf"{re.escape(_safe(name))}-(\d+)", other.name) for other in _HOME.iterdir())
    return [int(match[1]) for match in matches if match]


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name).strip(".") or "run"


def _prepare(path: Path, made: list[Path], force: bool, resume: bool) -> bool:
    """Make the folder, or check the one that exists; return True if its finished run is the result already."""
    if path.exists() and not path.is_dir():
        raise OutputPlaceError(f"{path} is a file, and a run needs a folder", "choose another one with -o/--output")
    _make_all(path, made)
    names = sorted(entry.name for entry in path.iterdir() if entry.name != STAGING)
    if not names or (resume and (path / STAGING / STATE).exists()):
        return False
    if not _is_run(path) and _is_run(path / STAGING) and (force or resume):
        return False  # it was killed while its files were moved up
    if not _is_run(path):
        raise OutputPlaceError(
            f"{path} holds files that do not belong to a run ({', '.join(names[:3])}{'...' if len(names) > 3 else ''})",
            "choose a new or empty folder with -o/--output",
        )
    if not force and not resume:
        raise OutputPlaceError(
            f"{path} holds a run already", "choose another folder with -o, or replace it with --force"
        )
    return resume


def _is_run(path: Path) -> bool:
    """Return whether a run wrote the folder, by its report and not by its name."""
    try:
        report = read_json(path / REPORT)
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and "schema_version" in report


def _make_all(path: Path, made: list[Path]) -> None:
    """Make the folder and its parents; add those that did not exist to ``made``."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        made.append(folder)


def _remove_empty(made: list[Path]) -> None:
    for folder in reversed(made):
        with contextlib.suppress(OSError):  # somebody else wrote into it
            folder.rmdir()


def _open_staging(path: Path, force: bool, resume: bool) -> IO[str]:
    """Open the log in the staging folder. Its lock tells a running run from the remains of one that was killed."""
    staging = path / STAGING
    for own in (staging, staging / STATE):
        files.refuse_link(own)
    log = _locked_log(staging)
    if log is None:
        raise FolderInUse(f"another run is writing to {path}", "wait for it, or choose another folder with -o")
    interrupted = (staging / STATE).exists()
    if interrupted and resume:
        _leave_state(staging)
        return log
    if interrupted and not force:
        log.close()
        raise OutputPlaceError(
            f"{path} holds a run that was interrupted",
            "continue it with --resume, start over with --force, or choose another folder with -o",
        )
    for entry in staging.iterdir():  # all but the log: whoever has its lock has the folder
        if entry.name != LOG:
            _remove(entry)
    log.truncate(0)
    return log


def _locked_log(staging: Path) -> IO[str] | None:
    """Open and lock the log; return None where another process has the lock."""
    while True:
        files.own_folder(staging)
        try:
            log = files.open_own(staging / LOG, "a")
        except FileNotFoundError:  # its owner removed the folder just now
            continue
        if not try_lock(log):
            log.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(log.fileno()), (staging / LOG).lstat()):
                return log
        log.close()


@contextlib.contextmanager
def _naming(file: Path) -> Iterator[None]:
    """Turn an OSError into an OutputError that names the file; the system's message does not."""
    try:
        yield
    except OSError as err:
        raise OutputError(f"cannot write {file}: {err.strerror}", "check the folder and the free space") from err


def _leave_state(staging: Path) -> None:
    """Delete everything but the state and the log."""
    for file in staging.iterdir():
        if file.name not in (STATE, LOG):
            with contextlib.suppress(OSError):
                _remove(file)


def _remove(path: Path) -> None:
    """Delete a file, a folder with its content, or a link, but nothing that a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
