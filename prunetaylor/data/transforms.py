"""Random changes of training images by torchvision.transforms.v2, named in a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prunetaylor.core.errors import UsageError, close_match
from prunetaylor.core.text import first_line
from prunetaylor.data.row_random import RowRandom
from prunetaylor.runtime.torchvision_import import import_torchvision

Entry = str | Mapping[str, Mapping[str, Any]] | Callable[[Tensor], Tensor]
Named = Sequence[Entry]
"""A list such as ["RandomHorizontalFlip", {"RandomCrop": {"size": 32, "padding": 4}}], or of transforms themselves.

Transforms of transforms, such as RandomApply, have a list of this kind as their argument ``transforms``.
"""
_LABELLED = ("MixUp", "CutMix")


def chain(named: Named, sample: Tensor) -> Callable[[Tensor, RowRandom], Tensor]:
    """Return the transforms as one function of a batch's rows and random numbers; it applies them image by image.

    They draw from torch's global state, which is seeded anew for each image and restored.

    Args:
        sample: a raw image (C, H, W); the results must have its shape and type.

    Raises:
        UsageError: for an unknown name, arguments that it does not accept, or a result of another shape or type. The
            function raises it too, for transforms that change only some images.
    """
    steps = [_make(entry) for entry in named]

    def one(x: Tensor) -> Tensor:
        try:
            for step in steps:
                x = step(x)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of a transform's code, which may raise anything
            raise UsageError(
                f"data.augment does not work on samples of shape {tuple(sample.shape)}: {first_line(error)}",
                "these are torchvision.transforms.v2 on raw images (C, H, W), before data.normalize",
            ) from error
        if not isinstance(x, Tensor) or x.shape != sample.shape or x.dtype != sample.dtype:
            made = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise UsageError(
                f"data.augment makes {made} of {sample.dtype} {tuple(sample.shape)}",
                "leave conversion to data.normalize and resizing to data.size; crops need their padding",
            )
        return x

    def change(x: Tensor, draws: RowRandom) -> Tensor:
        seeds = draws.integers(2**62, torch.device("cpu")).tolist()
        if not len(x):
            return x
        changed = []
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            for image, seed in zip(x, seeds, strict=True):
                torch.manual_seed(seed)
                changed.append(one(image))
        return torch.stack(changed)

    change(sample.unsqueeze(0), RowRandom(torch.Generator().manual_seed(0), 1))
    return change


def _make(entry: Entry) -> Callable[[Tensor], Tensor]:
    if callable(entry):
        return entry
    import_torchvision()
    from torchvision.transforms import v2

    known = {name: one for name, one in vars(v2).items() if isinstance(one, type) and issubclass(one, v2.Transform)}
    pairs: Mapping[str, Mapping[str, Any]] = {entry: {}} if isinstance(entry, str) else entry
    if not isinstance(pairs, Mapping) or len(pairs) != 1:
        raise UsageError(f"data.augment: {pairs} is not one transform", "give a list of NAME or {NAME: arguments}")
    [(name, arguments)] = pairs.items()
    if name in _LABELLED:
        raise UsageError(f"data.augment: {name} mixes labels, which distillation does not have", "leave it out")
    if name not in known:
        raise UsageError(
            f"data.augment: unknown transform {name!r}{close_match(name, known)}",
            "names are those of torchvision.transforms.v2",
        )
    given = dict(arguments or {})
    if isinstance(inner := given.get("transforms"), Sequence) and not isinstance(inner, str):
        given["transforms"] = [_make(one) for one in inner]
    try:
        made: Callable[[Tensor], Tensor] = known[name](**given)
    except Exception as error:
        cause = f"data.augment: {name}: {first_line(error)}"
        raise UsageError(cause, "see torchvision.transforms.v2 for its arguments") from error
    return made
