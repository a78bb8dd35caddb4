"""Methods are found by name: one file each in a folder of the package, and more in other installed packages.

A registry is a folder of the package (``pruning/criteria``); the name of a file in it is the name of a method, and a
file whose name starts with an underscore holds what its neighbours share. Other packages add methods by entry points:

    [project.entry-points."prunetaylor.criteria"]
    spectral = "prunetaylor_spectral:Spectral"

Names come from the folder and from the metadata of installed packages, and facts about a method from its source, so
that checking a configuration, printing ``--help`` and completing a command line import no method and no torch.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import pkgutil
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from prunetaylor.core.errors import UsageError, close_match

_ROOT = Path(__file__).parents[1]
T = TypeVar("T")


@dataclass(frozen=True)
class Registry:
    """Methods of one kind.

    Attributes:
        kind: what messages call one of them.
        folder: where this package has its own, below ``prunetaylor/``.
        group: the group of entry points by which other packages add theirs; None where they cannot.
        hyphens: names are written with hyphens where those of files have underscores.
    """

    kind: str
    folder: str
    group: str | None = None
    hyphens: bool = False


CRITERIA = Registry("criterion", "pruning/criteria", "prunetaylor.criteria")
STRUCTURES = Registry("structure", "pruning/structures", "prunetaylor.structures")
REPAIRS = Registry("repair", "pruning/repairs", "prunetaylor.repairs", hyphens=True)
REFINERS = Registry("refiner", "pruning/refiners", "prunetaylor.refiners", hyphens=True)
SOURCES = Registry("data source", "data/sources", "prunetaylor.sources")
TRACKERS = Registry("tracker", "report/trackers")
ENGINES = Registry("engine", "sweep/engines")
METRICS = Registry("metric", "measure/metrics", "prunetaylor.metrics")
RESERVED_GROUPS = ("prunetaylor.exports",)
"""Groups of entry points that are not read yet, and mean nothing else: export formats are not found by name so far."""


@dataclass(frozen=True)
class MethodDescription:
    """A method as users read of it; the defaults are those of the interfaces."""

    summary: str
    cost: str = ""
    use: str = ""
    needs: str = "samples"
    default_repair: str = "none"


def names(registry: Registry) -> tuple[str, ...]:
    """The names of all methods of a kind, sorted, those of other packages included."""
    return tuple(sorted({*_own(registry), *(plugin.name for plugin in _plugins(registry.group))}))


def load(registry: Registry, interface: type[T], name: str) -> T:
    """The method of that name, which is a module or an object of a class that has what ``interface`` asks for.

    Raises:
        UsageError: there is no method of that name, or several packages have one; the package that has it cannot be
            imported, or lacks a part of the interface.
    """
    known = names(registry)
    if name not in known:
        raise UsageError(f"unknown {registry.kind} {name!r}{close_match(name, known)}", f"known: {', '.join(known)}")
    plugins = [plugin for plugin in _plugins(registry.group) if plugin.name == name]
    own = _own(registry).get(name)
    packages = [*(["prunetaylor"] if own else []), *map(_package, plugins)]
    if len(packages) > 1:
        raise UsageError(
            f"{len(packages)} packages have a {registry.kind} {name!r}: {' and '.join(packages)}",
            f"uninstall {packages[-1]}, or ask its authors to rename theirs",
        )
    if own:
        module = importlib.import_module(f"prunetaylor.{registry.folder.replace('/', '.')}.{own}")
        return _checked(module, interface)
    whose, package = f"the {registry.kind} {name!r} of the package {packages[0]}", packages[0]
    try:
        loaded = plugins[0].load()
    except Exception as error:
        raise UsageError(
            f"{whose} cannot be imported ({type(error).__name__}: {error})",
            f"update {package}, or uninstall it: pip uninstall {package}",
        ) from error
    try:
        return _checked(loaded, interface)
    except TypeError as error:
        raise UsageError(f"{whose} is incomplete: {error}", f"ask the authors of {package} to mend it") from error


@cache
def describe_method(registry: Registry, name: str) -> MethodDescription:
    """Return what a method states about itself, without importing it.

    For a method of another package the summary is that package's name.
    """
    if name not in _own(registry):
        plugin = next(plugin for plugin in _plugins(registry.group) if plugin.name == name)
        return MethodDescription(f"from the package {_package(plugin)}", needs="", default_repair="")
    known = {field.name for field in fields(MethodDescription)}
    return MethodDescription(**{key: value for key, value in literals(registry, name).items() if key in known})


@cache
def literals(registry: Registry, name: str) -> dict[str, Any]:
    """Return the literals at the top of a method's file and of its classes, by name, without importing the file.

    Without a ``summary`` among them it is the first sentence of the file's docstring.
    """
    tree = ast.parse((_ROOT / registry.folder / f"{_own(registry)[name]}.py").read_text(encoding="utf-8"))
    text = " ".join((ast.get_docstring(tree) or "").split("\n\n")[0].split())
    stated: dict[str, Any] = {"summary": text.partition(". ")[0].rstrip(".")}
    in_classes = (inner for node in tree.body if isinstance(node, ast.ClassDef) for inner in node.body)
    for node in [*tree.body, *in_classes]:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with contextlib.suppress(ValueError):  # not a literal
                stated[node.targets[0].id] = ast.literal_eval(node.value)
    return stated


def is_own(registry: Registry, name: str) -> bool:
    """Return whether this package has the method itself."""
    return name in _own(registry)


def forget_packages() -> None:
    """Read the installed packages' entry points again at the next call, as after an installation in a notebook."""
    _plugins.cache_clear()
    describe_method.cache_clear()
    literals.cache_clear()


@cache
def _own(registry: Registry) -> dict[str, str]:
    """Return the files of this package's own methods, by the methods' names."""
    files = [m.name for m in pkgutil.iter_modules([str(_ROOT / registry.folder)]) if not m.name.startswith("_")]
    return {file.replace("_", "-") if registry.hyphens else file: file for file in files}


@cache
def _plugins(group: str | None) -> tuple[EntryPoint, ...]:
    return () if group is None else tuple(entry_points(group=group))


def _package(plugin: EntryPoint) -> str:
    return plugin.dist.name if plugin.dist is not None else plugin.value.partition(":")[0].partition(".")[0]


def _checked(loaded: object, interface: type[T]) -> T:
    """A method from what its file or entry point gives; TypeError where it lacks a part of the interface."""
    if isinstance(loaded, ModuleType) and not isinstance(loaded, interface):
        own = [one for one in vars(loaded).values() if inspect.isclass(one) and one.__module__ == loaded.__name__]
        classes = [one for one in own if issubclass(one, interface)]
        if len(classes) != 1:
            raise TypeError(f"{loaded.__name__} has {len(classes)} classes derived from {interface.__name__}, not one")
        loaded = classes[0]
    method = loaded() if inspect.isclass(loaded) else loaded
    if not isinstance(method, interface):
        raise TypeError(f"{loaded!r} is no {interface.__name__}")
    return method
