"""Methods are found by the name of their file: a new file is a new method.

Names are read from the folder, and facts about a method from its source, so that checking a configuration, printing
``--help`` and completing a command line import no method and no torch.
A file whose name starts with an underscore holds what its neighbours share.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from prunetaylor.core.errors import UsageError, close_match

_ROOT = Path(__file__).parents[1]


@cache
def names(room: str) -> tuple[str, ...]:
    """The methods in a room (``"pruning/criteria"``, ``"data/sources"``...), sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules([str(_ROOT / room)]) if not m.name.startswith("_")))


def load(room: str, name: str) -> ModuleType:
    """The module of one method; UsageError with a close match where there is none of that name."""
    known = names(room)
    if name not in known:
        raise UsageError(f"unknown {room} {name!r}{close_match(name, known)}", f"known: {', '.join(known)}")
    return importlib.import_module(f"prunetaylor.{room.replace('/', '.')}.{name}")


@cache
def facts(room: str, name: str) -> dict[str, Any]:
    """The literals that a method states at the top of its file (``SUMMARY``, ``NEEDS``...), by their names.

    ``SUMMARY`` is the first sentence of the file's docstring where it states none.
    """
    tree = ast.parse((_ROOT / room / f"{name}.py").read_text(encoding="utf-8"))
    text = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    found: dict[str, Any] = {"SUMMARY": text.partition(". ")[0].rstrip(".")}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with contextlib.suppress(ValueError):  # not a literal
                found[node.targets[0].id] = ast.literal_eval(node.value)
    return found
