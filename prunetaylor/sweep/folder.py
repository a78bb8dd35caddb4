"""A sweep's folder: what was started there, whether it goes on, and that one process at a time leads it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from prunetaylor.core.errors import OutputError, OutputPlaceError, UsageError, cannot_write
from prunetaylor.core.files import open_own, write_text
from prunetaylor.pipeline.files.run_folder import locked
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
    """Whether a sweep was started in this folder."""
    return (path / SWEEP).is_file()


def home_of(path: Path) -> Path:
    """Return the folder of a sweep for the file that its folder holds, else ``path`` itself."""
    return path.parent if path.name == SWEEP and (path.parent / DIGEST).exists() else path


def stored(folder: Path) -> Sweep:
    """The sweep that was started in ``folder``; OutputPlaceError where there is none."""
    if not is_sweep(folder):
        raise OutputPlaceError(f"{folder} holds no sweep", "name the folder of a sweep (its -o)")
    return read(folder / SWEEP)


def digest(folder: Path) -> str:
    """``Sweep.digest`` as it was when the sweep in ``folder`` was started."""
    return _line(folder / DIGEST)


def open_study(folder: Path, url: str | None) -> Study:
    """The study of the sweep in ``folder``; UsageError where its state is in a database that is not named."""
    mark = folder / _DATABASE
    if url is None and mark.exists():
        raise UsageError(
            f"the state of the sweep in {folder} is in a database ({_line(mark)})",
            "name it: prunetaylor sweep --storage URL, with --show as well",
        )
    if url is not None and (folder / JOURNAL).exists():
        raise UsageError(f"the state of the sweep in {folder} is in {JOURNAL}", "leave out --storage")
    study = Study(stored(folder), folder.resolve(), digest(folder), url)
    if url is not None and not mark.exists():
        write_text(mark, url.partition("://")[0] + "\n")
    return study


def place(sweep: Sweep, wanted: Path | None, *, resume: bool) -> Path:
    """The folder of a sweep, which holds its file from here on: ``wanted``, or ``sweeps/NAME-N``.

    One that holds the same sweep is taken again. OutputPlaceError where ``wanted`` holds something else, or where
    ``resume`` is set and there is nothing to resume.
    """
    try:
        folder = wanted if wanted is not None else _numbered(sweep)
        if is_sweep(folder):
            if digest(folder) != sweep.digest():
                raise OutputPlaceError(
                    f"{folder} holds another sweep (or the checkpoint has changed)",
                    "choose another folder with -o/--output",
                )
            return folder
        if resume:
            raise OutputPlaceError(
                f"{folder} holds no such sweep to resume", "leave out --resume, or name its folder with -o"
            )
        if folder.exists() and (not folder.is_dir() or any(path.name != DIGEST for path in folder.iterdir())):
            raise OutputPlaceError(
                f"{folder} holds files that are not of a sweep", "choose a new or empty one with -o/--output"
            )
        folder.mkdir(parents=True, exist_ok=True)
        # in this order: a folder with the sweep's file has all that it needs
        write_text(folder / DIGEST, sweep.digest() + "\n")
        write_text(folder / SWEEP, sweep.dump())
    except OSError as err:
        raise cannot_write(wanted or _HOME, err, "choose another folder with -o/--output") from err
    return folder


@contextlib.contextmanager
def leading(folder: Path) -> Iterator[None]:
    """Hold the folder as the one process that hands out its trials; UsageError where another does."""
    with open_own(folder / _LEADER, "w") as file:
        if not locked(file):
            raise UsageError(f"the sweep in {folder} is running", "join it with --worker")
        yield


def is_led(folder: Path) -> bool:
    """Return whether a process leads the sweep, as far as can be told from here."""
    try:
        with leading(folder):
            return False
    except UsageError:
        return True


def _line(path: Path) -> str:
    """The one short line of a file in a sweep's folder. OutputError where it is no such file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise OutputError(f"{path} is no regular file", "the sweep cannot be resumed")
        with path.open("rb") as file:
            return file.read(_LONGEST).decode("utf-8", "replace").strip()
    except OSError as err:
        raise OutputError(f"{path} cannot be read: {err.strerror}", "the sweep cannot be resumed") from err


def _numbered(sweep: Sweep) -> Path:
    """The latest ``sweeps/NAME-N`` that holds this sweep, else the next number."""
    name = re.sub(r"[^\w.+-]+", "_", sweep.name).strip(".") or "sweep"
    found = {}
    if _HOME.is_dir():
        matches = (re.fullmatch(rf"{re.escape(name)}-(\d+)", path.name) for path in _HOME.iterdir())
        found = {int(match[1]): _HOME / match[0] for match in matches if match}
    for number in sorted(found, reverse=True):
        if is_sweep(found[number]) and digest(found[number]) == sweep.digest():
            return found[number]
    return _HOME / f"{name}-{max(found, default=0) + 1}"
