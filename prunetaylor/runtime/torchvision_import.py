"""Make torchvision importable beside a torch of another build, whoever imports it first.

Its compiled operators do not load beside such a torch (a CPU wheel from another index, say), and ``import torchvision``
then dies with "operator torchvision::nms does not exist". Models, transforms and data sets need no compiled operator,
so declaring the schemas that the import looks for is enough. That has to happen before the import, which may stand in
the user's own code: ``repair_imports`` watches for it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from prunetaylor.core.errors import UsageError
from prunetaylor.core.requirements import install_hint

if TYPE_CHECKING:
    import torch

_NAME = "torchvision"
_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
# A Library takes its schemas with it when it is collected.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Return torchvision, with or without its compiled operators. Raises UsageError: it cannot be imported."""
    repair_imports()
    try:
        return importlib.import_module(_NAME)
    except ModuleNotFoundError as error:
        raise UsageError(f"torchvision cannot be imported: {error}", install_hint(_NAME)) from error


def repair_imports() -> None:
    """Declare torchvision's operators when it is next imported, by whomever; this costs nothing until then."""
    if _NAME not in sys.modules and not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())


class _TorchvisionFinder(MetaPathFinder):
    """A finder that finds nothing itself but declares the operators when torchvision is about to be imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == _NAME:
            with contextlib.suppress(ValueError):
                sys.meta_path.remove(self)
            _declare_operators()
        return None


def _declare_operators() -> None:
    """Declare the operators that torchvision's own library does not provide."""
    import torch

    _load_library()
    missing = [schema for name, schema in _SCHEMAS.items() if not hasattr(torch.ops.torchvision, name)]
    if missing and not _declared:
        library = torch.library.Library(_NAME, "FRAGMENT")  # type: ignore[no-untyped-call]
        _declared.append(library)
        for schema in missing:
            library.define(schema)  # type: ignore[no-untyped-call]


def _load_library() -> None:
    """Load the compiled operators, as torchvision is about to; a library that cannot be loaded is skipped."""
    import torch

    spec = importlib.util.find_spec(_NAME)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    for file in sorted(file for folder in folders for file in Path(folder).glob("_C.*")):
        with contextlib.suppress(OSError, ImportError, RuntimeError):
            torch.ops.load_library(str(file))  # type: ignore[no-untyped-call]
