"""Raw samples become inputs of the network: scaling, channels and size of images, normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from prunetaylor.core.errors import DataError, UsageError, close_match
from prunetaylor.data.inputs import Inputs

#: channel means and standard deviations of images scaled to [0, 1], from each data set's training images
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "mnist": ((0.1307,), (0.3081,)),
    "none": None,
}
_LUMINANCE = (0.2989, 0.587, 0.114)
"""The weights of red, green and blue in grey, as in torchvision."""


@dataclass(frozen=True)
class Preprocess:
    """A callable that computes ``(x / 255 if uint8 - mean) / std`` over dimension 1, on the device of x.

    Floating-point numbers get the type ``dtype``, whole numbers other than uint8 (token ids) pass unchanged, and so do
    bytes that are no ``pixels``. Of several tensors only those of floating-point numbers change. Images get
    ``channels`` (colours become grey by their luminance) and squares of ``size``: resized and cropped.

    Attributes:
        mean, std: one entry a channel, or one for all.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int | None = None
    size: int | None = None
    pixels: bool = True
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise UsageError("normalisation needs as many means as standard deviations", "give both, of one length")
        if any(not s > 0 for s in self.std or ()):
            raise UsageError("a standard deviation of the normalisation is not positive", "check data.normalize")

    def __call__(self, raw: Inputs) -> Inputs:
        self.check(raw)
        return raw.change_tensors(self._only_tensor if raw.tensor is not None else self._one_of_several)

    def _only_tensor(self, raw: Tensor) -> Tensor:
        if raw.dtype == torch.uint8 and self.pixels:
            x = raw.to(self.dtype).div_(255)
        elif raw.is_floating_point() or raw.dtype == torch.bool:
            # A copy: a network that changes its input in place must not change the samples.
            x = raw.to(self.dtype, copy=self.mean is None)
        elif self.mean is None:
            return raw.clone()
        else:
            raise DataError(f"inputs of type {raw.dtype} cannot be normalised", "use data.normalize=none for them")
        if x.dim() == 4:
            x = _in_size(_in_channels(x, self.channels), self.size)
        if self.mean is None or self.std is None:
            return x
        self._check_channels(x.shape)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean, std = (_on_device(values, x.device).view(shape) for values in (self.mean, self.std))
        return (x - mean) / std

    def _one_of_several(self, part: Tensor) -> Tensor:
        # Copies, as above.
        return part.to(self.dtype, copy=True) if part.is_floating_point() else part.clone()

    def check(self, inputs: Inputs) -> None:
        """Raise DataError if inputs are to be normalised and are no single tensor (B, C, ...)."""
        if self.mean is not None and inputs.tensor is None:
            raise DataError(
                f"only images can be normalised, and a sample is {inputs.describe()}", "use data.normalize=none"
            )

    def _check_channels(self, shape: torch.Size) -> None:
        if self.mean is not None and (len(shape) < 2 or len(self.mean) not in (1, shape[1])):
            channels = shape[1] if len(shape) > 1 else "no"
            raise DataError(
                f"the normalisation has {len(self.mean)} channels, the inputs have {channels}",
                "set data.normalize to one that fits, {mean: [...], std: [...]} or none",
            )

    def to_json(self) -> dict[str, list[float]] | None:
        """Return mean and std as lists, or None without normalisation."""
        return None if self.mean is None or self.std is None else {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, value: Any) -> Preprocess:
        """Return the preprocessing of ``to_json``'s value or of a known name; UsageError for anything else."""
        if value is None:
            return cls()
        if isinstance(value, str):
            if value not in NORMALIZATIONS:
                raise UsageError(
                    f"unknown normalisation {value!r}{close_match(value, NORMALIZATIONS)}",
                    f"known: {', '.join(NORMALIZATIONS)}, or {{mean: [...], std: [...]}}",
                )
            return cls(*(NORMALIZATIONS[value] or (None, None)))
        try:
            return cls(tuple(float(v) for v in value["mean"]), tuple(float(v) for v in value["std"]))
        except (TypeError, KeyError, ValueError) as error:
            raise UsageError(f"a normalisation cannot be {value!r}", "give {mean: [...], std: [...]}") from error


def _in_channels(x: Tensor, channels: int | None) -> Tensor:
    """Return images (B, C, H, W) with another number of channels; a fourth one, transparency, is left out."""
    had = x.shape[1]
    if channels is None or channels == had:
        return x
    if channels == 1:
        weights = torch.tensor(_LUMINANCE, dtype=x.dtype, device=x.device)
        return torch.einsum("bchw,c->bhw", x[:, :3], weights).unsqueeze(1) if had >= 3 else x[:, :1]
    return x[:, :channels] if had > channels else x[:, :1].expand(-1, channels, -1, -1)


def _in_size(x: Tensor, size: int | None) -> Tensor:
    """Return squares: the shorter side is resized to ``size``, and the middle of the longer one is cut out."""
    height, width = x.shape[2:]
    if size is None or (height, width) == (size, size):
        return x
    scale = size / min(height, width)
    sides = (max(size, round(height * scale)), max(size, round(width * scale)))
    x = nn.functional.interpolate(x, sides, mode="bilinear", antialias=True, align_corners=False)
    row, column = (sides[0] - size) // 2, (sides[1] - size) // 2
    return x[:, :, row : row + size, column : column + size]


@lru_cache(maxsize=32)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    # An inference tensor could not take part in a later backward pass.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)
