"""How a Python process of ours is started. Nothing that lies in the working directory is imported by one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = "PYTHONSAFEPATH"
"""The variable that does what -P does, for processes whose command line is not ours to write."""


def python(*arguments: str) -> list[str]:
    """Return the command line of this Python with ``arguments``.

    With ``-m`` or ``-c`` Python looks for modules in the working directory first: a file ``optuna.py`` that happens to
    lie there, in a folder from somebody else perhaps, would be run. -P forbids that, and unlike -I keeps PYTHONPATH.
    """
    return [sys.executable, "-P", *arguments]


def forget_working_directory() -> None:
    """Take the working directory from the front of sys.path, where ``python -m`` has put it."""
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]


@contextmanager
def safe_path() -> Iterator[None]:
    """Have every Python process that is started in this block, by whomever, leave the working directory alone."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
