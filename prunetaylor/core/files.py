"""Files are written completely or not at all, and links inside the tool's own folders are never followed.

Everything that writes uses this module: the old file stays until the new one is complete and on the disk. A path that
the user named may be a link or a device (``-o /dev/stdout``). A name inside a run's or a sweep's folder never is, since
somebody else may have made the folder.
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
    """Write ``text`` as UTF-8, as ``write_stream`` does, and return the file's size in bytes."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"), named=named, remedy=remedy)


def write_bytes(path: Path, data: bytes, *, named: bool = False, remedy: str = _REMEDY) -> int:
    """Write ``data``, as ``write_stream`` does, and return the file's size in bytes."""
    return write_stream(path, lambda stream: stream.write(data), named=named, remedy=remedy)


def write_stream(
    path: Path,
    write: Callable[[IO[bytes]], object],
    *,
    named: bool = False,
    failures: tuple[type[Exception], ...] = (OSError,),
    remedy: str = _REMEDY,
) -> int:
    """Let ``write`` fill a new file that then replaces ``path``, and return its size in bytes.

    Args:
        named: the user named this path: links are followed, and what is not a regular file (a device, a pipe, a
            descriptor of this process) is written to directly.
        failures: exceptions of ``write`` that mean that the file cannot be written.

    Raises:
        OutputError: the file cannot be written. The old file is unchanged, and no partial file remains.
    """

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            write(stream)

    with _report_failures(path, failures, remedy, named):
        special = _open_special(path) if named else None
        if special is None:
            return _replace(path.resolve() if named else path, fill)
        with special as stream:
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
    """Do the same with a ``write`` that opens the file itself. ``mode`` gives the permissions before the umask."""
    with _report_failures(path, failures, _REMEDY, named):
        special = _open_special(path) if named else None
        if special is not None:
            with special as stream, tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "file"
                write(file)
                with file.open("rb") as made:
                    shutil.copyfileobj(made, stream)
                return file.stat().st_size
        return _replace(path.resolve() if named else path, write, mode)


def append_text(path: Path, text: str, *, remedy: str = _REMEDY) -> None:
    """Append to a file that the user, or the environment, named. OutputError if it cannot be written."""
    reported = _report_failures(path, (OSError,), remedy, named=False)
    with reported, path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)


def open_own(path: Path, mode: str) -> IO[Any]:
    """Open a file of the tool's own (a log, a lock) as text, and refuse whatever somebody else put in its place.

    Raises OutputError if ``path`` is a link, has several hard links or is no regular file, and OSError as ``open``
    does.
    """
    refuse_link(path)
    return open(path, mode, encoding="utf-8", opener=_open_own)


def own_folder(path: Path) -> Path:
    """Create the folder ``path`` if it is missing. OutputError if it is a link or no folder; OSError as of mkdir."""
    refuse_link(path)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise _refusal(path, "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a folder")
    return path


def refuse_link(path: Path) -> None:
    """Raise OutputError if ``path`` is a symbolic link, wherever it leads."""
    if path.is_symlink():
        raise _refusal(path, "a symbolic link")


def sync(folder: Path) -> None:
    """Flush the folder's entries to the disk; systems that cannot open folders do so themselves."""
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
    """Open without following links, and truncate only after the check."""
    safe_flags = flags & ~os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, safe_flags, 0o666)
    except OSError as err:
        if err.errno in (errno.ENXIO, errno.ELOOP):
            raise _refusal(Path(path), "not a regular file") from err
        raise
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _refusal(Path(path), "not a regular file")
        if status.st_nlink > 1:
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
    """Create an empty file beside ``path`` under an unpredictable name, and remove it afterwards."""
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


def _open_special(path: Path) -> IO[bytes] | None:
    """Open what is not a regular file for writing; return None if ``path`` is a regular file or missing."""
    text = os.path.abspath(path)
    match = _DESCRIPTOR.fullmatch(text)
    descriptor = int(match[1]) if match else _STREAMS.get(text)
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
def _report_failures(path: Path, failures: tuple[type[Exception], ...], remedy: str, named: bool) -> Iterator[None]:
    """Turn the failures that a write may have into an OutputError with its remedy."""
    try:
        yield
    except OutputError:
        raise
    except failures as err:
        cause = err if isinstance(err, OSError) else err.__context__
        if named and isinstance(cause, OSError):
            raise cannot_write(path, cause, remedy) from err
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else err
        raise OutputError(f"cannot write {path}: {first_line(reason)}", remedy) from err
