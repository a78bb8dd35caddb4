"""Start Python processes that import nothing from the working directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SAFE_PATH = "PYTHONSAFEPATH"
"""The variable that acts like -P, for processes whose command line somebody else writes."""


def python(*arguments: str) -> list[str]:
    """Return the command line of this Python with ``arguments``.

    With ``-m`` or ``-c`` Python looks for modules in the working directory first: a file ``optuna.py`` that happens to
    lie there would be run. -P forbids that, and unlike -I keeps PYTHONPATH.
    """
    return [sys.executable, "-P", *arguments]


def forget_working_directory() -> None:
    """Remove the working directory from the front of sys.path, where ``python -m`` puts it."""
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]


@contextmanager
def safe_path() -> Iterator[None]:
    """Keep the working directory from sys.path in every Python process that is started in this block."""
    before = os.environ.get(SAFE_PATH)
    os.environ[SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[SAFE_PATH]
        else:
            os.environ[SAFE_PATH] = before
