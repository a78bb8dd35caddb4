"""Load code named by the user, ``FILE.py:NAME`` or ``package.module:NAME``; the caller decides whether to trust it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from prunetaylor.core.config.code import is_code
from prunetaylor.core.errors import UsageError, close_match
from prunetaylor.runtime.torchvision_import import repair_imports


def source_hash(spec: str) -> str | None:
    """Return the sha256 of the file in ``spec``, FILE.py:NAME, without its imports; None for any other ``spec``."""
    file = Path(spec.rpartition(":")[0])
    if not is_code(spec) or file.suffix != ".py" or not file.is_file():
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()


def load_object(spec: str, *, base: Path | None = None) -> Any:
    """Import and return the object that ``spec`` names.

    A relative FILE.py starts at ``base`` (the working directory if None); modules beside the file, and for a package
    those in ``base``, can be imported by it. The same file with the same content is imported once. What the code
    prints while it is imported goes to stderr.

    Raises UsageError: the form, file, module or name is wrong, or the import raised any exception.
    """
    if not is_code(spec):
        raise UsageError(f"{spec!r} names no code", "write FILE.py:NAME or package.module:NAME")
    head, _, name = spec.rpartition(":")
    folder = base or Path.cwd()
    target: Any = _from_file(folder / head, spec) if head.endswith(".py") else _from_package(head, folder, spec)
    for part in name.split("."):
        if not hasattr(target, part):
            public = [n for n in dir(target) if not n.startswith("_")]
            raise UsageError(
                f"{head} has no {part!r}{close_match(part, public)}", f"name what is defined there in {spec!r}"
            )
        target = getattr(target, part)
    return target


def _from_file(path: Path, spec: str) -> ModuleType:
    try:
        source = path.resolve().read_bytes()
    except OSError as error:
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        reason = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise UsageError(
            f"cannot read {path} of {spec!r}: {reason}{close_match(path.name, near)}",
            "a relative path starts at the working directory",
        ) from error
    path = path.resolve()
    # The content is part of the name: an edited file is imported anew, and an unchanged one keeps its classes.
    key = hashlib.sha256(str(path).encode() + b"\0" + source).hexdigest()[:16]
    name = f"_prunetaylor_{path.stem}_{key}".replace("-", "_").replace(".", "_")
    if name in sys.modules:
        return sys.modules[name]
    description = importlib.util.spec_from_file_location(name, path)
    if description is None:
        raise UsageError(f"{path} cannot be imported", "name a Python file")
    module = importlib.util.module_from_spec(description)
    sys.modules[name] = module  # before it runs: dataclasses and pickling look their module up there
    try:
        with _user_code(path.parent, spec):
            # Compiled here, so that no stale bytecode is read and none is written beside the user's file.
            exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_package(name: str, folder: Path, spec: str) -> ModuleType:
    with _user_code(folder, spec):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            raise UsageError(
                f"no module named {error.name!r} for {spec!r}",
                "install the package, start in the folder that holds it, or write FILE.py:NAME",
            ) from error


@contextlib.contextmanager
def _user_code(folder: Path, spec: str) -> Iterator[None]:
    """Make ``folder`` importable and redirect stdout to stderr; errors of the code become UsageError."""
    repair_imports()
    path = str(folder.resolve())
    sys.path.insert(0, path)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"importing {spec!r} failed: {type(error).__name__}: {error}{_where(error)}",
            "correct that code, then try again",
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # the code may have removed it itself
            sys.path.remove(path)


def _where(error: BaseException) -> str:
    """Return ``" (FILE, line N)"`` for the innermost frame outside this file."""
    frame, place = error.__traceback__, ""
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith("<"):
            place = f" ({file}, line {frame.tb_lineno})"
        frame = frame.tb_next
    return place
