"""Files are written whole or not at all, and no link is followed in a folder that the tool writes.

Whatever writes goes through here: the old file stays until the new one is complete and on the disk. A path that the
user named may be a link or a device (``-o /dev/stdout``); a name inside a run's or a sweep's folder never is, as the
folder may have come from somebody else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from prunetaylor.core.errors import OutputError, cannot_write
from prunetaylor.core.text import first_line

PARTIAL = ".partial"
"""How the name of a file ends that is not complete yet."""
_REMEDY = "check the folder, its permissions and the free space"
_MODE = 0o666
_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")


def write_text(path: Path, text: str, *, named: bool = False, remedy: str = _REMEDY) -> int:
    """Write ``text`` as UTF-8, as ``write_stream`` does; the file's bytes."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"), named=named, remedy=remedy)


def write_bytes(path: Path, data: bytes, *, named: bool = False, remedy: str = _REMEDY) -> int:
    """Write ``data``, as ``write_stream`` does; the file's bytes."""
    return write_stream(path, lambda stream: stream.write(data), named=named, remedy=remedy)


def write_stream(
    path: Path,
    write: Callable[[IO[bytes]], object],
    *,
    named: bool = False,
    failures: tuple[type[Exception], ...] = (OSError,),
    remedy: str = _REMEDY,
) -> int:
    """Let ``write`` fill a new file that then takes the place of ``path``; the file's bytes.

    Args:
        named: the user named this path: links are followed, and what is not a regular file (a device, a pipe, a
            descriptor of this process) is written to as it is.
        failures: exceptions of ``write`` that mean that the file cannot be written.

    Raises:
        OutputError: it cannot be written. The old file is as it was, and nothing is left beside it.
    """

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            write(stream)

    with _told(path, failures, remedy, named):
        straight = _straight(path) if named else None
        if straight is None:
            return _replace(path.resolve() if named else path, fill)
        with straight as stream:
            before = _position(stream)
            write(stream)
            stream.flush()
            return _position(stream) - before


def write_by_path(
    path: Path,
    write: Callable[[Path], object],
    *,
    named: bool = False,
    mode: int = _MODE,
    failures: tuple[type[Exception], ...] = (OSError,),
) -> int:
    """Do the same with a ``write`` that opens its file itself. ``mode`` is the permissions, less the umask."""
    with _told(path, failures, _REMEDY, named):
        straight = _straight(path) if named else None
        if straight is not None:
            with straight as stream, tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "file"
                write(file)
                with file.open("rb") as made:
                    shutil.copyfileobj(made, stream)
                return file.stat().st_size
        return _replace(path.resolve() if named else path, write, mode)


def append_text(path: Path, text: str, *, remedy: str = _REMEDY) -> None:
    """Append to a file that the user named, or that the environment named for them. OutputError where it cannot be."""
    told = _told(path, (OSError,), remedy, named=False)
    with told, path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def open_own(path: Path, mode: str) -> IO[Any]:
    """Open a file of the tool's own (a log, a lock) as text, and nothing that another put in its place.

    OutputError where ``path`` is a link, one of several hard links, or no regular file; OSError as of ``open``.
    """
    refuse_link(path)
    return open(path, mode, encoding="utf-8", opener=_open_own)


def own_folder(path: Path) -> Path:
    """Make the folder ``path`` where it is missing. OutputError where it is a link or no folder; OSError of mkdir."""
    refuse_link(path)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _refusal(path, "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a folder")
    return path


def refuse_link(path: Path) -> None:
    """OutputError where ``path`` is a symbolic link, wherever it leads."""
    if path.is_symlink():
        raise _refusal(path, "a symbolic link")


def sync(folder: Path) -> None:
    """Bring the folder's names to the disk; where folders cannot be opened the system sees to it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _refusal(path: Path, what: str) -> OutputError:
    return OutputError(
        f"{path} is {what}, and no link is followed in a folder that prunetaylor writes",
        "remove it, or choose another folder with -o/--output",
    )


def _open_own(path: str, flags: int) -> int:
    """Open without following; only then is anything cut off."""
    kept = flags & ~os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, kept, 0o666)
    except OSError as err:
        if err.errno in (errno.ENXIO, errno.ELOOP):
            raise _refusal(Path(path), "not a regular file") from err
        raise
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise _refusal(Path(path), "not a regular file")
        if found.st_nlink > 1:
            raise _refusal(Path(path), "one of several hard links to a file")
        if flags & os.O_TRUNC:
            os.ftruncate(handle, 0)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _replace(path: Path, write: Callable[[Path], object], mode: int = _MODE) -> int:
    with _temporary(path, mode) as temporary:
        usual = temporary.stat().st_mode
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        size = temporary.stat().st_size
        os.chmod(temporary, stat.S_IMODE(usual))  # safetensors puts a file of its own there, for the owner only
        os.replace(temporary, path)
    sync(path.parent)
    return size


@contextlib.contextmanager
def _temporary(path: Path, mode: int) -> Iterator[Path]:
    """A new empty file beside ``path`` under a name that nobody can have prepared; gone afterwards."""
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = path.with_name(f".{secrets.token_hex(12)}{PARTIAL}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(temporary, flags, mode))
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):  # it has its place, or the disk is gone
            temporary.unlink(missing_ok=True)


def _straight(path: Path) -> IO[bytes] | None:
    """A stream to what is no regular file; None where ``path`` is one, or is not there yet."""
    text = os.path.abspath(path)
    found = _DESCRIPTOR.fullmatch(text)
    descriptor = int(found[1]) if found else _STREAMS.get(text)
    if descriptor is not None:
        return os.fdopen(os.dup(descriptor), "wb")  # it goes on where this process stands in it
    with contextlib.suppress(FileNotFoundError):
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            return path.open("wb")
    return None


def _position(stream: IO[bytes]) -> int:
    try:
        return stream.tell()
    except OSError:  # a pipe
        return 0


@contextlib.contextmanager
def _told(path: Path, failures: tuple[type[Exception], ...], remedy: str, named: bool) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except failures as err:
        found = err if isinstance(err, OSError) else err.__context__
        if named and isinstance(found, OSError):
            raise cannot_write(path, found, remedy) from err
        said = found.strerror if isinstance(found, OSError) and found.strerror else err
        raise OutputError(f"cannot write {path}: {first_line(said)}", remedy) from err
