"""A run's folder. Nothing is seen in it before everything is there; of a run that failed only its kept state is left.

The files are written into ``FOLDER/.partial`` and moved up together at the end, ``report.json`` last: a folder with a
report is a complete run. The folder itself is made at the start, so that one that cannot be written to costs no work.
A state that was kept in ``.partial`` is what ``--resume`` goes on from; it goes when the run is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from prunetaylor.core import files
from prunetaylor.core.errors import OutputError, OutputPlaceError, cannot_write
from prunetaylor.core.json_file import read_json

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
    """The folder of one run, as a context: left without ``commit`` it takes away all that it made."""

    def __init__(self, path: Path, made: list[Path], log: IO[str] | None) -> None:
        self.path = path
        self._made = made  # folders that were not there before, outermost first
        self._log = log  # None: the run is finished already
        self._complete = log is None

    @classmethod
    def create(cls, path: Path | None, name: str, *, force: bool = False, resume: bool = False) -> RunFolder:
        """Make the folder ``path``, or ``runs/NAME-N`` with the next free N where ``path`` is None.

        With ``resume`` it is the folder of the run that was begun there (without a path the last ``runs/NAME-N``): one
        that is ``finished``, or one with a ``state`` to go on from; a fresh one where there is neither.

        OutputError where the folder cannot be written, holds something already (a finished run is replaced with
        ``force``, when the new one is complete), or is in use.
        """
        made: list[Path] = []
        try:
            if path is None:
                path = (_last(name) if resume else None) or _numbered(name, made)
            finished, was_run = _named(path, made, force, resume), _is_run(path)
            log = None if finished else _open_staging(path, force, resume)
            if log is not None and _is_run(path) and not was_run and not force:
                # Another run ended between the look at the folder and its lock.
                log.close()
                shutil.rmtree(path / STAGING, ignore_errors=True)
                _named(path, made, force, resume)
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
        """Whether the run was complete before this one began."""
        return self._log is None

    @property
    def state(self) -> Path | None:
        """The state that was kept; None where there is none."""
        state = self.stage(STATE)
        return state if state.exists() else None

    def keep(self, write: Callable[[IO[bytes]], None]) -> None:
        """Put a new state in the place of the old one: whole or not at all. OutputError where it cannot be written."""
        files.write_stream(
            self.stage(STATE),
            write,
            failures=(OSError, RuntimeError),  # torch's own writer raises the latter
            remedy="free some space, then continue from the last state with --resume",
        )

    def report(self) -> dict[str, Any]:
        """The report of a finished run."""
        found: dict[str, Any] = read_json(self.path / REPORT)
        return found

    def require(self, need: int) -> None:
        """OutputError where the disk has fewer than ``need`` bytes left: before the work, not after it."""
        free = shutil.disk_usage(self.path).free
        if free < need:
            raise OutputError(
                f"the disk of {self.path} has {free / 1e6:.1f} MB left, and the run needs {need / 1e6:.1f} MB",
                "free some space, or choose another folder with -o/--output",
            )

    def stage(self, name: str) -> Path:
        """Where to write the run's file ``name``; ``commit`` moves it into the folder."""
        return self.path / STAGING / name

    def write_text(self, name: str, text: str) -> None:
        """Stage a text file. OutputError where it cannot be written."""
        files.write_text(self.stage(name), text)

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to log.jsonl: the time in seconds since 1970, the event, its fields. OutputError as above."""
        assert self._log is not None
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}, allow_nan=False)
        with _told(self.stage(LOG)):
            self._log.write(line + "\n")
            self._log.flush()

    def commit(self) -> None:
        """Move everything that was staged into the folder; from here on the run is complete."""
        assert self._log is not None
        names = {file.name for file in (self.path / STAGING).iterdir()} - {STATE}
        staged = [self.stage(name) for name in sorted(names, key=lambda name: name == REPORT)]
        with _undisturbed(), _told(self.path):
            (self.path / REPORT).unlink(missing_ok=True)
            for file in staged:
                if file.is_dir():  # a tracker's; the one before is in the way
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
        with _undisturbed():
            with contextlib.suppress(OSError):  # a full disk refuses the flush
                self._log.close()
            if self.state is not None:
                _leave_state(self.path / STAGING)
                return
            shutil.rmtree(self.path / STAGING, ignore_errors=True)
            _remove_empty(self._made)


def _numbered(name: str, made: list[Path]) -> Path:
    """``runs/NAME-N``, N one more than the largest there is; making it reserves it."""
    _make_all(_HOME, made)
    number = max(_taken(name), default=0)
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
    """The newest of ``runs/NAME-N``, where there is one."""
    found = _taken(name)
    return _HOME / f"{_safe(name)}-{max(found)}" if found else None


def _taken(name: str) -> list[int]:
    """The numbers N of all ``runs/NAME-N``."""
    if not _HOME.is_dir():
        return []
    found = (re.fullmatch(rf"{re.escape(_safe(name))}-(\d+)", other.name) for other in _HOME.iterdir())
    return [int(one[1]) for one in found if one]


def _safe(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "_", name).strip(".") or "run"


def _named(path: Path, made: list[Path], force: bool, resume: bool) -> bool:
    """Make sure of the folder; whether it holds a finished run that is all there is to do."""
    if path.exists() and not path.is_dir():
        raise OutputPlaceError(f"{path} is a file, and a run needs a folder", "choose another one with -o/--output")
    _make_all(path, made)
    there = sorted(entry.name for entry in path.iterdir() if entry.name != STAGING)
    if not there or (resume and (path / STAGING / STATE).exists()):
        return False
    if not _is_run(path) and _is_run(path / STAGING) and (force or resume):
        return False  # killed while its files were moved up
    if not _is_run(path):
        raise OutputPlaceError(
            f"{path} holds files that are not of a run ({', '.join(there[:3])}{'...' if len(there) > 3 else ''})",
            "choose a new or empty folder with -o/--output",
        )
    if not force and not resume:
        raise OutputPlaceError(
            f"{path} holds a run already", "choose another folder with -o, or replace it with --force"
        )
    return resume


def _is_run(path: Path) -> bool:
    """Whether the folder was written by a run: by what its report says, not by its name."""
    try:
        report = read_json(path / REPORT)
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and "schema_version" in report


def _make_all(path: Path, made: list[Path]) -> None:
    """``mkdir -p`` that notes what was not there before."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        made.append(folder)


def _remove_empty(made: list[Path]) -> None:
    for folder in reversed(made):
        with contextlib.suppress(OSError):  # somebody else's files came to lie in it
            folder.rmdir()


def _open_staging(path: Path, force: bool, resume: bool) -> IO[str]:
    """The log in the staging folder. Its lock tells a run at work from the remains of one that was killed."""
    staging = path / STAGING
    for own in (staging, staging / STATE):
        files.refuse_link(own)
    log = _locked_log(staging)
    if log is None:
        raise FolderInUse(f"another run is writing to {path}", "wait for it, or choose another folder with -o")
    kept = (staging / STATE).exists()
    if kept and resume:
        _leave_state(staging)
        return log
    if kept and not force:
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
    """The log, which may be there already; None where another process has its lock."""
    while True:
        files.own_folder(staging)
        try:
            log = files.open_own(staging / LOG, "a")
        except FileNotFoundError:  # whoever had the folder took it away just now
            continue
        if not locked(log):
            log.close()
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(log.fileno()), (staging / LOG).lstat()):
                return log
        log.close()


@contextlib.contextmanager
def _told(file: Path) -> Iterator[None]:
    """OutputError where the file cannot be written; what the system says does not name it."""
    try:
        yield
    except OSError as err:
        raise OutputError(f"cannot write {file}: {err.strerror}", "check the folder and the free space") from err


def _leave_state(staging: Path) -> None:
    """Only the state and the log stay."""
    for file in staging.iterdir():
        if file.name not in (STATE, LOG):
            with contextlib.suppress(OSError):
                _remove(file)


def _remove(path: Path) -> None:
    """Take away a file, a folder with all that is in it, or a link, and nothing that a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def locked(file: IO[str]) -> bool:
    """Take the file's lock; False where another process holds it. File systems without locks always give it."""
    try:
        import fcntl
    except ImportError:  # not a Unix
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    _own.add(file)
    return True


_own: weakref.WeakSet[IO[str]] = weakref.WeakSet()
"""Files whose lock this process has. A forked child, such as one that decodes data, must not share them: it outlives
this process by some seconds where that is killed, and nobody could go on meanwhile."""


def _let_go() -> None:
    for file in list(_own):
        file.close()  # whatever is written is flushed at once, so that there is nothing to write twice
    _own.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append(number)

    kinds = [signal.SIGINT, signal.SIGTERM, *([signal.SIGALRM] if hasattr(signal, "SIGALRM") else [])]
    before = {kind: signal.signal(kind, wait) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        for number in waiting:
            signal.raise_signal(number)
