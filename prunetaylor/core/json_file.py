"""Files of JSON that somebody else may have written: read whole, bounded and plain, or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

_MOST = 1 << 26  # bytes; a report has some 100 KB
_DEEPEST = 40


def read_json(path: Path) -> Any:
    """The value in ``path``: strings, finite numbers, lists and objects, some dozens deep at most.

    Raises OSError where the file cannot be opened, and ValueError, in one line, for whatever else it is.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")
    with path.open("rb") as file:
        content = file.read(_MOST + 1)
    if len(content) > _MOST:
        raise ValueError("it is too large")
    try:
        found = json.loads(content.decode("utf-8"))
    except Exception as error:  # RecursionError and numbers of thousands of digits included
        raise ValueError("it is not JSON") from error
    left = [(found, 0)]
    while left:
        value, depth = left.pop()
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        if isinstance(value, dict | list):
            left += [(one, depth + 1) for one in (value.values() if isinstance(value, dict) else value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("it holds numbers that are not finite")
        elif type(value) is int and abs(value) >= 1 << 63:
            raise ValueError("it holds numbers without end")
    return found
