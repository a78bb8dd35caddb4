"""The errors that a user can meet. Each states its cause and its remedy; its class determines the exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneTaylorError(Exception):
    """Base class of the errors that a user can fix; ``cause`` takes one line, ``remedy`` one or two."""

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause}\n{remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy


class UsageError(PruneTaylorError):
    """A command line, configuration or argument is invalid."""

    exit_code = 2


class CheckpointRefused(PruneTaylorError):
    """A checkpoint cannot be read safely, or does not fit its network."""

    exit_code = 5


class RunRefused(PruneTaylorError):
    """A run's folder holds a report, state or network that no run wrote."""

    exit_code = 5


class DataError(PruneTaylorError):
    """Samples are missing, empty or malformed."""

    exit_code = 2


class NumericsError(PruneTaylorError):
    """Values cannot be computed with: they are NaN or infinite, or have no curvature."""


class OutputError(PruneTaylorError):
    """A result cannot be written to the requested place."""


class OutputPlaceError(OutputError):
    """The place named for a result is taken or does not exist; the user must name another."""

    exit_code = 2


_NO_PLACE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


def cannot_write(path: object, err: OSError, remedy: str) -> OutputError:
    """Return the error for a path that the user named and that cannot be written.

    A path that cannot exist is a usage error; a full disk or a missing permission is not.
    """
    kind = OutputPlaceError if isinstance(err, _NO_PLACE) else OutputError
    return kind(f"cannot write {path}: {err.strerror or type(err).__name__}", remedy)


class PeerError(PruneTaylorError):
    """Another process of the run failed or disappeared. If ``silent``, that process reports the failure itself."""

    def __init__(self, cause: str, remedy: str = "", *, exit_code: int = 1, silent: bool = False) -> None:
        super().__init__(cause, remedy)
        self.exit_code = exit_code
        self.silent = silent


class TrialsFailed(PruneTaylorError):
    """Some trials of a sweep failed; the others have their results."""

    exit_code = 6


def close_match(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    match = closest(name, known)
    return "" if match is None else f"; did you mean {match!r}?"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to ``name``, ignoring case, or None; it is never ``name`` itself."""
    folded = {one.casefold(): one for one in known if one != name}
    matches = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[matches[0]] if matches else None
