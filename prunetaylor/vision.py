"""The one way to torchvision: import it through here, before anything else might.

torchvision's compiled operators do not load beside a torch of another build (a CPU wheel from another index, say), and
``import torchvision`` then dies with "operator torchvision::nms does not exist". Models, transforms and data sets need
no compiled operator, so declaring the schemas that the import looks for is enough.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

from prunetaylor.errors import UsageError
from prunetaylor.requirements import install_hint

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A Library takes its schemas with it when it is collected.
_declared: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """torchvision, with or without its compiled operators; UsageError where it is not installed or broken otherwise."""
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        raise UsageError(f"torchvision cannot be imported: {error}", install_hint("torchvision")) from error
    except RuntimeError as error:
        if "does not exist" not in str(error) or _declared:
            raise
    # The failed import leaves its submodules behind, half of them bound to the missing operators.
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    _declared.append(library)
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return importlib.import_module("torchvision")
