"""What a user can meet. Each error says its cause and its remedy; the exit code belongs to its class."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneTaylorError(Exception):
    """Base of every error that is the user's to mend: ``cause`` in one line, ``remedy`` in one or two."""

    exit_code = 1

    def __init__(self, cause: str, remedy: str = "") -> None:
        super().__init__(f"{cause}\n{remedy}" if remedy else cause)
        self.cause = cause
        self.remedy = remedy


class UsageError(PruneTaylorError):
    """A command line, configuration or argument that cannot be meant."""

    exit_code = 2


class CheckpointRefused(PruneTaylorError):
    """A checkpoint that cannot be read safely, or that does not fit its network."""

    exit_code = 5


class RunRefused(PruneTaylorError):
    """A run's folder whose report, state or network is not what a run writes."""

    exit_code = 5


class DataError(PruneTaylorError):
    """Samples that are missing, empty or malformed: the data that the user named is not what it is used as."""

    exit_code = 2


class NumericsError(PruneTaylorError):
    """Values that no result can be built on: NaN, infinite, or without curvature."""


class OutputError(PruneTaylorError):
    """A result that cannot be written where it was asked for."""


class OutputPlaceError(OutputError):
    """A place named for a result that is taken, or no place for it: another one is to be named."""

    exit_code = 2


_NO_PLACE = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)


def cannot_write(path: object, err: OSError, remedy: str) -> OutputError:
    """The error of a place that the user named: one that cannot be is usage, a full disk or a missing right is not."""
    kind = OutputPlaceError if isinstance(err, _NO_PLACE) else OutputError
    return kind(f"cannot write {path}: {err.strerror or type(err).__name__}", remedy)


class PeerError(PruneTaylorError):
    """Another process of the same run has failed or is gone. ``silent``: somebody else says so."""

    def __init__(self, cause: str, remedy: str = "", *, exit_code: int = 1, silent: bool = False) -> None:
        super().__init__(cause, remedy)
        self.exit_code = exit_code
        self.silent = silent


class TrialsFailed(PruneTaylorError):
    """A sweep that ended with trials that failed; all others have their results."""

    exit_code = 6


def close_match(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    found = closest(name, known)
    return "" if found is None else f"; did you mean {found!r}?"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to ``name``, whatever the case of either; never ``name`` itself."""
    folded = {one.casefold(): one for one in known if one != name}
    found = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[found[0]] if found else None
