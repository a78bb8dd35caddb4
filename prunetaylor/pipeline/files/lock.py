"""Locks on files, by which processes know that another one works in a folder."""

from __future__ import annotations

import os
import weakref
from typing import IO


def try_lock(file: IO[str]) -> bool:
    """Lock the file; return False where another process has the lock. File systems without locks always succeed."""
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
    _locked.add(file)
    return True


_locked: weakref.WeakSet[IO[str]] = weakref.WeakSet()
"""Files that this process has locked. A forked child, such as one that decodes data, must not share the locks: it
survives this process by some seconds if that is killed, and nobody could resume the run meanwhile."""


def _close_inherited() -> None:
    for file in list(_locked):
        file.close()  # every write is flushed at once, so nothing is written twice
    _locked.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
