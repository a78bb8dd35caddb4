"""A sweep's folder: it holds the sweep's file and study, and one process at a time leads it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from prunetaylor.core.errors import OutputError, OutputPlaceError, UsageError, cannot_write
from prunetaylor.core.files import open_own, write_text
from prunetaylor.pipeline.files.lock import try_lock
from prunetaylor.sweep.definition import Sweep
from prunetaylor.sweep.file import read
from prunetaylor.sweep.study.study import JOURNAL, Study

SWEEP = "sweep.yaml"
DIGEST = "sweep.sha256"
_HOME = Path("sweeps")
_LEADER = ".leader"
_LONGEST = 200  # bytes
_DATABASE = ".database"  # its kind; the address may hold a password


def is_sweep(path: Path) -> bool:
    """Return whether a sweep was started in this folder."""
    return (path / SWEEP).is_file()


def home_of(path: Path) -> Path:
    """Return a sweep's folder for the sweep's file in it, and ``path`` itself otherwise."""
    return path.parent if path.name == SWEEP and (path.parent / DIGEST).exists() else path


def read_stored(folder: Path) -> Sweep:
    """Read the sweep that was started in ``folder``; OutputPlaceError where there is none."""
    if not is_sweep(folder):
        raise OutputPlaceError(f"{folder} holds no sweep", "name the folder of a sweep (its -o)")
    return read(folder / SWEEP)


def stored_digest(folder: Path) -> str:
    """Return ``Sweep.digest`` as it was when the sweep in ``folder`` was started."""
    return _read_line(folder / DIGEST)


def open_study(folder: Path, url: str | None) -> Study:
    """Open the study of the sweep in ``folder``; UsageError where its state is in a database and ``url`` is None."""
    mark = folder / _DATABASE
    if url is None and mark.exists():
        raise UsageError(
            f"the state of the sweep in {folder} is in a database ({_read_line(mark)})",
            "name it with --storage URL (--show needs it too)",
        )
    if url is not None and (folder / JOURNAL).exists():
        raise UsageError(f"the state of the sweep in {folder} is in {JOURNAL}", "omit --storage")
    study = Study(read_stored(folder), folder.resolve(), stored_digest(folder), url)
    if url is not None and not mark.exists():
        write_text(mark, url.partition("://")[0] + "\n")
    return study


def prepare_folder(sweep: Sweep, named: Path | None, *, resume: bool) -> Path:
    """Write the sweep's file into its folder, ``named`` or else ``sweeps/NAME-N``, and return the folder.

    A folder that holds the same sweep is used again. OutputPlaceError where ``named`` holds something else, or where
    ``resume`` is set and there is nothing to resume.
    """
    try:
        folder = named if named is not None else _numbered(sweep)
        if is_sweep(folder):
            if stored_digest(folder) != sweep.digest():
                raise OutputPlaceError(
                    f"{folder} holds another sweep (or the checkpoint has changed)",
                    "choose another folder with -o/--output",
                )
            return folder
        if resume:
            raise OutputPlaceError(
                f"{folder} does not hold this sweep", "omit --resume, or name the sweep's folder with -o"
            )
        if folder.exists() and (not folder.is_dir() or any(path.name != DIGEST for path in folder.iterdir())):
            raise OutputPlaceError(
                f"{folder} is not empty, and holds no sweep", "choose a new or empty one with -o/--output"
            )
        folder.mkdir(parents=True, exist_ok=True)
        # The sweep's file comes last: a folder that has it is complete.
        write_text(folder / DIGEST, sweep.digest() + "\n")
        write_text(folder / SWEEP, sweep.dump())
    except OSError as err:
        raise cannot_write(named or _HOME, err, "choose another folder with -o/--output") from err
    return folder


@contextlib.contextmanager
def lead_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of the one process that leads the sweep; UsageError where another process holds it."""
    with open_own(folder / _LEADER, "w") as file:
        if not try_lock(file):
            raise UsageError(f"the sweep in {folder} is running", "to help it, add --worker")
        yield


def is_running(folder: Path) -> bool:
    """Return whether a process leads the sweep, as far as this machine can see."""
    try:
        with lead_lock(folder):
            return False
    except UsageError:
        return True


def _read_line(path: Path) -> str:
    """Read a file of one short line in a sweep's folder. OutputError where it cannot be read, or is no file."""
    try:
        if path.exists() and not path.is_file():  # opening a named pipe would wait for its other end
            raise OutputError(f"{path} is no regular file", "the sweep cannot be resumed")
        with path.open("rb") as file:
            return file.read(_LONGEST).decode("utf-8", "replace").strip()
    except OSError as err:
        raise OutputError(f"{path} cannot be read: {err.strerror}", "the sweep cannot be resumed") from err


def _numbered(sweep: Sweep) -> Path:
    """Return the latest ``sweeps/NAME-N`` that holds this sweep, else the next number."""
    name = re.sub(r"[^\w.+-]+", "_", sweep.name).strip(".") or "sweep"
    folders: dict[int, Path] = {}
    if _HOME.is_dir():
        matches = (re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name) for path in _HOME.iterdir())
        folders = {int(match[1]): _HOME / match[0] for match in matches if match}
    for number in sorted(folders, reverse=True):
        if is_sweep(folders[number]) and stored_digest(folders[number]) == sweep.digest():
            return folders[number]
    return _HOME / f"{name}-{max(folders, default=0) + 1}"
