"""A digest of the code that makes a fit: the sources of its module and of the package's modules that it imports.

They are found by reading import statements, from one module to the next, those inside functions included, so that a
module that is moved, renamed or newly imported is followed without a list to keep. What only type checkers import
is left out. Modules that are looked up by name while the program runs (the methods of a registry) are not followed: no
fit uses one.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from prunetaylor.core.errors import PruneTaylorError

PACKAGE = "prunetaylor"
_FOLDER = Path(__file__).parents[2]


@cache
def code_digest(module: str, folder: Path = _FOLDER) -> str:
    """Return the sha256, hexadecimal, of ``module`` and of all that it imports of the package in ``folder``.

    Raises PruneTaylorError: the source of one of them is missing.
    """
    digest = hashlib.sha256()
    for name, source in sorted(import_closure(module, folder).items()):
        digest.update(f"{name}\0{len(source)}\0".encode() + source)
    return digest.hexdigest()


def import_closure(module: str, folder: Path = _FOLDER) -> dict[str, bytes]:
    """Return the sources of ``module`` and of every module of the package that it imports, directly or not, by name."""
    sources: dict[str, bytes] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in sources:
            continue
        path = _source(name, folder)
        if path is None:
            raise PruneTaylorError(
                f"the code that a fit is made by is not complete: no source of {name} in {folder}",
                f"install {PACKAGE} anew, with its sources, or set cache.enabled=false",
            )
        sources[name] = path.read_bytes()
        waiting += _imports(name, sources[name], folder)
        if "." in name:  # importing a module imports the packages that it lies in
            waiting.append(name.rpartition(".")[0])
    return sources


def _source(name: str, folder: Path) -> Path | None:
    place = folder.joinpath(*name.split(".")[1:])
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


def _imports(name: str, source: bytes, folder: Path) -> Iterator[str]:
    """Yield the names of the package's modules that the source of ``name`` imports."""
    for statement in _statements(ast.parse(source, name).body):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names if _ours(alias.name))
        elif isinstance(statement, ast.ImportFrom):
            if statement.level:
                raise NotImplementedError(f"{name} imports relatively; the package names its modules in full")
            if statement.module and _ours(statement.module):
                yield from (_imported(statement.module, alias.name, folder) for alias in statement.names)


def _imported(module: str, name: str, folder: Path) -> str:
    """Return the module that ``from module import name`` imports: ``module`` itself if that defines ``name``."""
    home = _source(module, folder)
    if home is None or home.stem != "__init__":
        return module
    body = ast.parse(home.read_bytes(), module).body
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return module if name in defined else f"{module}.{name}"


def _ours(name: str) -> bool:
    return name.split(".")[0] == PACKAGE


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield every statement that can run, nested ones included; expressions import nothing and are not walked."""
    for statement in body:
        yield statement
        type_checkers = isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING")
        fields = ("orelse",) if type_checkers else ("body", "orelse", "finalbody")
        for field in fields:
            yield from _statements(getattr(statement, field, []))
        for branch in (*getattr(statement, "handlers", []), *getattr(statement, "cases", [])):
            yield from _statements(branch.body)
