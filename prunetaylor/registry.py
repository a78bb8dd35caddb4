"""Methods are found by the name of their file: a new file is a new method.

Names are read from the folder, so that checking a configuration and printing ``--help`` import no method and no torch.
A file whose name starts with an underscore holds what its neighbours share.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from prunetaylor.errors import UsageError, close_match

_ROOT = Path(__file__).parent


@cache
def names(room: str) -> tuple[str, ...]:
    """The methods in a room (``"saliency"``, ``"data/sources"``...), sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules([str(_ROOT / room)]) if not m.name.startswith("_")))


def load(room: str, name: str) -> ModuleType:
    """The module of one method; UsageError with a close match where there is none of that name."""
    known = names(room)
    if name not in known:
        raise UsageError(f"unknown {room} {name!r}{close_match(name, known)}", f"known: {', '.join(known)}")
    return importlib.import_module(f"prunetaylor.{room.replace('/', '.')}.{name}")
