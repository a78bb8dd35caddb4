"""torchvision:NAME: a classification data set of torchvision.datasets below ``data.root``.

Nothing is downloaded without ``data.download=true``.

Sets that torchvision holds as arrays (MNIST, CIFAR, SVHN and their like) become tensors at once; others are decoded
when they are needed.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunetaylor.core.config.schema import DataSection
from prunetaylor.core.errors import DataError, UsageError, close_match
from prunetaylor.core.requirements import install_hint
from prunetaylor.core.text import one_line
from prunetaylor.data.images import Images, image_splits
from prunetaylor.data.samples import RawSource, Split, TensorSplit
from prunetaylor.runtime.torchvision_import import import_torchvision

# Sets whose splits are called something else than train= or split="train"/"test": arguments of train, test, validation.
_Arguments = dict[str, Any]
_SPLITS: dict[str, tuple[_Arguments, _Arguments, _Arguments | None]] = {
    "Country211": ({"split": "train"}, {"split": "test"}, {"split": "valid"}),
    "DTD": ({"split": "train"}, {"split": "test"}, {"split": "val"}),
    "EMNIST": ({"split": "balanced", "train": True}, {"split": "balanced", "train": False}, None),
    "FGVCAircraft": ({"split": "train"}, {"split": "test"}, {"split": "val"}),
    "Flowers102": ({"split": "train"}, {"split": "test"}, {"split": "val"}),
    "ImageNet": ({"split": "train"}, {"split": "val"}, None),
    "Imagenette": ({"split": "train"}, {"split": "val"}, None),
    "OxfordIIITPet": ({"split": "trainval"}, {"split": "test"}, None),
    "PCAM": ({"split": "train"}, {"split": "test"}, {"split": "val"}),
    "Places365": ({"split": "train-standard"}, {"split": "val"}, None),
    "RenderedSST2": ({"split": "train"}, {"split": "test"}, {"split": "val"}),
}
_NORMALIZE = {"MNIST": "mnist", "CIFAR10": "cifar10", "ImageNet": "imagenet", "Imagenette": "imagenet"}
# A mirrored digit is another sign.
_NO_FLIPS = ("SVHN", "GTSRB", "RenderedSST2")


def read(argument: str, cfg: DataSection, seed: int) -> RawSource:
    """Inputs uint8 (N, C, H, W), targets int64 (N,). UsageError for an unknown set, DataError for missing files."""
    datasets = import_torchvision().datasets
    kind = _kind(datasets, argument)
    if cfg.root is None:
        raise UsageError(
            f"torchvision:{argument} needs a folder: data.root is not set",
            "add data.root=DIR, the folder of the data set, or data.root=DIR data.download=true to download it there",
        )
    arguments = _SPLITS.get(argument) or _usual_arguments(kind, argument)
    parts = [None if a is None else _open(kind, argument, cfg, a) for a in arguments]
    splits = _splits([p for p in parts if p is not None], cfg)
    return RawSource(
        train=splits[0],
        test=splits[1],
        validation=splits[2] if len(splits) > 2 else None,
        classes=_classes(parts[0], splits),
        normalize=_NORMALIZE.get(argument, "none"),
        augment="none" if argument in _NO_FLIPS else "usual",
    )


def _kind(datasets: ModuleType, name: str) -> Any:
    known = [n for n in datasets.__all__ if not n.endswith(("Folder", "Dataset"))]
    if name not in known:
        raise UsageError(
            f"torchvision has no data set {name!r}{close_match(name, known)}",
            "use torchvision:CIFAR10, or another class of torchvision.datasets",
        )
    return getattr(datasets, name)


def _usual_arguments(kind: Any, name: str) -> tuple[_Arguments, _Arguments, None]:
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        return {"train": True}, {"train": False}, None
    if "split" in parameters:
        return {"split": "train"}, {"split": "test"}, None
    raise UsageError(
        f"torchvision's {name} has no split into training and test images",
        "write a function that returns (train, test), and pass --data FILE.py:FUNCTION",
    )


def _open(kind: Any, name: str, cfg: DataSection, arguments: _Arguments) -> Any:
    # ImageNet and its like have no such argument; the error that follows says what to put where.
    download = {"download": True} if cfg.download and name != "ImageNet" else {}
    try:
        # Stdout belongs to the run's result; downloads talk.
        with contextlib.redirect_stdout(sys.stderr):
            return kind(root=cfg.root, **arguments, **download)
    except ModuleNotFoundError as error:
        raise UsageError(f"torchvision's {name} needs a package: {error}", install_hint(str(error.name))) from error
    except Exception as error:
        message = one_line(error)
        raise DataError(
            f"torchvision:{name} cannot be read from {cfg.root}: {type(error).__name__}: {message}",
            "set data.root to the folder that torchvision keeps it in, or add data.download=true to fetch it there",
        ) from error


def _splits(parts: list[Any], cfg: DataSection) -> list[Split]:
    tensors = [_tensors(part) for part in parts]
    if cfg.size is None and all(split is not None for split in tensors):
        return [split for split in tensors if split is not None]
    return image_splits([_images(part) for part in parts], cfg.size)


def _targets(part: Any) -> Tensor | None:
    """Return class ids (N,), under any of the names that torchvision gives them."""
    for name in ("targets", "labels", "_labels", "y"):
        values = getattr(part, name, None)
        if values is not None and len(values) == len(part):
            ids = torch.as_tensor(np.asarray(values))
            if ids.ndim == 1 and not ids.is_floating_point():
                return ids.long()
    return None


def _tensors(part: Any) -> TensorSplit | None:
    """Return a set that torchvision keeps as uint8 arrays: (N, H, W), (N, H, W, 3) or (N, 3, H, W); None for others."""
    data, targets = getattr(part, "data", None), _targets(part)
    if not isinstance(data, Tensor | np.ndarray) or targets is None:
        return None
    x = torch.as_tensor(data)
    if x.dtype != torch.uint8 or x.ndim not in (3, 4):
        return None
    if x.ndim == 3:
        x = x.unsqueeze(1)
    elif x.shape[3] == 3 and x.shape[1] != 3:
        x = x.permute(0, 3, 1, 2).contiguous()
    return TensorSplit(x, targets)


def _images(part: Any) -> Images:
    targets = _targets(part)
    if targets is None:
        targets = torch.tensor([_class_of(part, index) for index in range(len(part))], dtype=torch.long)
    files = getattr(part, "samples", None)
    if isinstance(files, list) and len(files) == len(targets):
        return Images.of_files([str(path) for path, _ in files], targets)
    return Images(lambda index: _picture(part, index), lambda index: f"image {index} of {type(part).__name__}", targets)


def _class_of(part: Any, index: int) -> int:
    value = part[index][1]
    if not isinstance(value, int | np.integer):
        raise UsageError(
            f"torchvision's {type(part).__name__} gives a {type(value).__name__} for a sample, not a class",
            "write a function that returns (train, test), and pass --data FILE.py:FUNCTION",
        )
    return int(value)


def _picture(part: Any, index: int) -> Image.Image:
    picture = part[index][0]
    if not isinstance(picture, Image.Image):
        raise ValueError(f"a {type(picture).__name__} is not an image")
    return picture


def _classes(part: Any, splits: list[Split]) -> int:
    names = getattr(part, "classes", None)
    highest = max(int(targets.max()) for s in splits if (targets := s.targets()) is not None) + 1
    return max(highest, len(names)) if isinstance(names, list | tuple) else highest
