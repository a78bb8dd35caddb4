"""JSON files that somebody else may have written are read within bounds, or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_MOST = 1 << 26  # bytes; a report has some 100 KB
_DEEPEST = 40


def read_json(path: Path) -> Any:
    """Return the value in ``path``: strings, finite numbers, lists and objects, nested at most 40 levels deep.

    Raises OSError if the file cannot be opened, and ValueError, whose text has one line, for any other fault.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        content = file.read(_MOST + 1)
    if len(content) > _MOST:
        raise ValueError("it is too large")
    try:
        document = json.loads(content.decode("utf-8"))
    except Exception as error:  # RecursionError and numbers of thousands of digits included
        raise ValueError("it is not JSON") from error
    pending = [(document, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(value, dict | list):
            pending += [(one, depth + 1) for one in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("it contains numbers that are not finite")
        elif type(value) is int and abs(value) >= 1 << 63:
            raise ValueError("it contains numbers that are too large")
    return document
