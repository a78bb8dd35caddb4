"""Second-order pruning of trained PyTorch networks.

The public names are loaded when they are first used: importing the package does not import torch, so that the command
line answers ``--help`` and checks a configuration at once. Only Python's core is imported here: under
``python -m prunetaylor`` other modules would come from the working directory, until ``__main__`` removes it.
"""

from prunetaylor._version import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from prunetaylor.api import Result, prune, score
    from prunetaylor.core.errors import PruneTaylorError
    from prunetaylor.network.checkpoint.load import load
    from prunetaylor.pruning.masks import keep_masks

__all__ = ["PruneTaylorError", "Result", "__version__", "keep_masks", "load", "prune", "score"]

_MODULES = {
    "PruneTaylorError": "prunetaylor.core.errors",
    "Result": "prunetaylor.api",
    "keep_masks": "prunetaylor.pruning.masks",
    "load": "prunetaylor.network.checkpoint.load",
    "prune": "prunetaylor.api",
    "score": "prunetaylor.api",
}


def __getattr__(name: str) -> "Any":
    if name not in _MODULES:
        raise AttributeError(f"module 'prunetaylor' has no attribute {name!r}")
    import importlib

    from prunetaylor.runtime.torchvision_import import repair_imports

    repair_imports()  # before anything of the user's imports torchvision, timm or transformers
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
