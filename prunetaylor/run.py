"""A run's folder. Nothing is seen in it before everything is there; nothing is left of a run that failed.

The files are written into ``FOLDER/.partial`` and moved up together at the end, ``report.json`` last: a folder with a
report is a complete run. The folder itself is made at the start, so that one that cannot be written to costs no work.
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
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any

from prunetaylor.errors import OutputError

REPORT = "report.json"
LOG = "log.jsonl"
MODEL_FILE = "model.safetensors"
CONFIG_FILE = "config.yaml"
STAGING = ".partial"
_HOME = Path("runs")


class RunFolder:
    """The folder of one run, as a context: left without ``commit`` it takes away all that it made."""

    def __init__(self, path: Path, made: list[Path], log: IO[str]) -> None:
        self.path = path
        self._made = made  # folders that were not there before, outermost first
        self._log = log
        self._complete = False

    @classmethod
    def create(cls, path: Path | None, name: str, *, force: bool = False) -> RunFolder:
        """Make the folder ``path``, or ``runs/NAME-N`` with the next free N where ``path`` is None.

        OutputError where the folder cannot be written, holds something already (a finished run is replaced with
        ``force``, when the new one is complete), or is in use.
        """
        made: list[Path] = []
        try:
            path = _numbered(name, made) if path is None else _named(path, made, force)
            return cls(path, made, _open_staging(path))
        except OSError as err:
            _remove_empty(made)
            raise OutputError(
                f"cannot write the run to {path or _HOME}: {err.strerror}", "choose another folder with -o/--output"
            ) from err
        except OutputError:
            _remove_empty(made)
            raise

    def require(self, need: int) -> None:
        """OutputError where the disk has fewer than ``need`` bytes left: before the work, not after it."""
        free = shutil.disk_usage(self.path).free
        if free < need:
            raise OutputError(
                f"the disk of {self.path} has {free / 1e6:.1f} MB left, and the run needs {need / 1e6:.1f} MB",
                "make room, or choose another folder with -o/--output",
            )

    def stage(self, name: str) -> Path:
        """Where to write the run's file ``name``; ``commit`` moves it into the folder."""
        return self.path / STAGING / name

    def write_text(self, name: str, text: str) -> None:
        """Stage a text file."""
        with self.stage(name).open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def log(self, event: str, **fields: Any) -> None:
        """Append a line to log.jsonl: the time in seconds since 1970, the event, its fields."""
        self._log.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}, allow_nan=False) + "\n")
        self._log.flush()

    def commit(self) -> None:
        """Move everything that was staged into the folder; from here on the run is complete."""
        staged = sorted((self.path / STAGING).iterdir(), key=lambda file: file.name == REPORT)
        with _undisturbed():
            (self.path / REPORT).unlink(missing_ok=True)
            for file in staged:
                file.replace(self.path / file.name)
            self._complete = True
            self._log.close()
            (self.path / STAGING).rmdir()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        if self._complete:
            return
        with _undisturbed():
            with contextlib.suppress(OSError):  # a full disk refuses the flush
                self._log.close()
            shutil.rmtree(self.path / STAGING, ignore_errors=True)
            _remove_empty(self._made)


def _numbered(name: str, made: list[Path]) -> Path:
    """``runs/NAME-N``, N one more than the largest there is; making it reserves it."""
    safe = re.sub(r"[^\w.+-]+", "_", name).strip(".") or "run"
    _make_all(_HOME, made)
    taken = (re.fullmatch(rf"{re.escape(safe)}-(\d+)", other.name) for other in _HOME.iterdir())
    number = max((int(found[1]) for found in taken if found), default=0)
    while True:
        number += 1
        path = _HOME / f"{safe}-{number}"
        try:
            path.mkdir()
        except FileExistsError:  # another run was faster
            continue
        made.append(path)
        return path


def _named(path: Path, made: list[Path], force: bool) -> Path:
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file, and a run needs a folder", "choose another one with -o/--output")
    _make_all(path, made)
    there = sorted(entry.name for entry in path.iterdir() if entry.name != STAGING)
    if not there:
        return path
    if not _is_run(path):
        raise OutputError(
            f"{path} holds files that are not of a run ({', '.join(there[:3])}{'...' if len(there) > 3 else ''})",
            "choose a new or empty folder with -o/--output",
        )
    if not force:
        raise OutputError(f"{path} holds a run already", "choose another folder with -o, or replace it with --force")
    return path


def _is_run(path: Path) -> bool:
    """Whether the folder was written by a run: by what its report says, not by its name."""
    try:
        report = json.loads((path / REPORT).read_text(encoding="utf-8"))
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


def _open_staging(path: Path) -> IO[str]:
    """The log in a fresh staging folder. Its lock tells a run at work from the remains of one that was killed."""
    staging = path / STAGING
    if staging.exists():
        with (staging / LOG).open("a", encoding="utf-8") as old:
            if not locked(old):
                raise OutputError(f"another run is writing to {path}", "wait for it, or choose another folder with -o")
        shutil.rmtree(staging)
    staging.mkdir()
    log = (staging / LOG).open("w", encoding="utf-8")
    locked(log)
    return log


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
    return True


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append(number)

    before = {kind: signal.signal(kind, wait) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
        for number in waiting:
            signal.raise_signal(number)
