"""Random changes of training images, for whole batches of tensors, drawn from one generator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunetaylor.core.errors import UsageError, close_match
from prunetaylor.data.inputs import Inputs
from prunetaylor.data.row_random import RowRandom
from prunetaylor.data.transforms import Named, chain

Augment = Callable[[Tensor, RowRandom], Tensor]
"""A function of (raw inputs of some rows, their random numbers) that returns the rows changed."""


def flip(x: Tensor, draws: RowRandom) -> Tensor:
    """Return x (B, C, H, W), of any dtype, with each image mirrored left to right with probability 1/2."""
    mirrored = draws.integers(2, x.device).bool()
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def crop_flip(x: Tensor, draws: RowRandom) -> Tensor:
    """Return x (B, C, H, W), of any dtype, with each image shifted at random, mirrored at its edges, and flipped.

    The shift is at most 4 pixels for images of up to 64 pixels, the usual recipe for CIFAR, and an eighth of the side
    above. The edges are filled with the mirrored image: zeros would move the statistics of activations away from those
    of real images, which short fine-tuning pays for.
    """
    count, channels, height, width = x.shape
    rows = _shifted(height, draws, x.device)
    columns = _shifted(width, draws, x.device)
    mirrored = draws.integers(2, x.device).bool()
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    cut = x.gather(2, rows[:, None, :, None].expand(count, channels, height, width))
    return cut.gather(3, columns[:, None, None, :].expand(count, channels, height, width))


def _shifted(side: int, draws: RowRandom, device: torch.device) -> Tensor:
    """Return (B, side) indices from a random shift on, mirrored at both ends without repeating the edge."""
    most = min(4 if side <= 64 else side // 8, side - 1)
    at = draws.integers(2 * most + 1, device)[:, None] + torch.arange(-most, side - most, device=device)
    return (side - 1) - ((side - 1) - at.abs()).abs()


def cut_mix(x: Tensor, draws: RowRandom) -> Tensor:
    """Return x (B, C, H, W), of any dtype, where half of the images contain a box of another image of the batch.

    ``x`` is the whole batch; select rows from the result. The box has the image's shape and a share of its area that is
    uniform in [0, 1] (CutMix: Yun et al. 2019, section 3.1). Labels do not follow, since the result is only shown to a
    teacher.
    """
    count, _, height, width = x.shape
    side = (1 - draws.uniform(x.device)).sqrt() * draws.integers(2, x.device)
    other = draws.order(x.device)
    inside = torch.ones((), dtype=torch.bool, device=x.device)
    for dim, size in ((2, height), (3, width)):
        length = (side * size).round()
        first = (draws.uniform(x.device) * (size - length + 1)).floor()
        at = torch.arange(size, device=x.device)
        covered = (at >= first.unsqueeze(1)) & (at < (first + length).unsqueeze(1))  # (B, size)
        inside = inside & covered.view(count, 1, *(size if d == dim else 1 for d in (2, 3)))
    return torch.where(inside, x[other], x)


_KNOWN: dict[str, Augment | None] = {"none": None, "flip": flip, "crop-flip": crop_flip}


def load_augmentation(
    name: str | Named | Callable[[Tensor], Tensor], inputs: Inputs
) -> tuple[str | Named, Augment | None]:
    """Return the augmentation of this name for samples such as the first of ``inputs``, and its function.

    The function is None for "none".

    "usual" is crop-flip for colour images (3 channels, at least 8 pixels a side) and none otherwise; a list contains
    transforms of torchvision or their names; a single transform counts as a list of one. Raises UsageError for an
    unknown name, and for flips or crops of inputs that are not images.
    """
    if not isinstance(name, str):
        steps = [name] if callable(name) else name
        if inputs.tensor is None:
            raise _no_image("data.augment", inputs)
        return steps, chain(steps, inputs.tensor[0])
    shape = torch.Size() if inputs.tensor is None else inputs.tensor.shape[1:]
    if name == "usual":
        colour = len(shape) == 3 and shape[0] == 3 and min(shape[1:]) >= 8
        name = "crop-flip" if colour else "none"
    if name not in _KNOWN:
        raise UsageError(f"unknown augmentation {name!r}{close_match(name, _KNOWN)}", f"known: {', '.join(_KNOWN)}")
    if name != "none" and len(shape) != 3:
        raise _no_image(f"data.augment={name}", inputs)
    return name, _KNOWN[name]


def _no_image(setting: str, inputs: Inputs) -> UsageError:
    return UsageError(
        f"{setting} needs images (channels, height, width); a sample is {inputs.describe()}", "use data.augment=none"
    )
