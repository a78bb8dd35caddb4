"""Image files as a split: a few threads decode them when they are first needed, and small sets stay in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunetaylor.core.errors import DataError
from prunetaylor.data.inputs import Inputs
from prunetaylor.data.splits import Split, TensorSplit
from prunetaylor.runtime import cores

#: decoded images are kept in memory up to this many bytes a data set
MEMORY = 2 * 2**30
#: so many headers are read, evenly spaced, to learn the images' form; reading all of ImageNet's takes minutes
PROBES = 4096
DEFAULT_SIZE = 224
_THREADS = 8
# What a decoder raises at bytes that are no image, or end too early.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_GRAY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True)
class Images:
    """Images that are opened by index; ``name`` is how errors call one. ``targets`` is int64 (N,)."""

    open: Callable[[int], Image.Image]
    name: Callable[[int], str]
    targets: Tensor
    paths: Sequence[str] | None = None  # of the files, where each image has its own

    @classmethod
    def of_files(cls, paths: Sequence[str], targets: Tensor) -> Images:
        """Return the images in files."""
        return cls(lambda index: Image.open(paths[index]), lambda index: paths[index], targets, paths)


@dataclass(frozen=True)
class Form:
    """The form of every image of a data set: uint8 (channels, height, width), resized and cropped or as it is."""

    channels: int
    height: int
    width: int
    resize: bool


def image_splits(parts: Sequence[Images], size: int | None) -> list[Split]:
    """Return one split for each part, all of one form; their common size decides whether they stay in memory.

    Images of equal size stay as they are. If sizes differ, or ``size`` is given, they are resized and cropped to
    ``size`` (224). They are RGB unless all probed images (up to 4096 a part, evenly spaced) are grey.
    """
    form = _form(parts, size)
    images = sum(len(part.targets) for part in parts)
    fits = images * form.channels * form.height * form.width <= MEMORY
    return [ImageSplit(part, form, in_memory=fits) for part in parts]


def _bytes(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:  # who decodes it will say more
        return -1


class ImageSplit(Split):
    """Images of one form; inputs are uint8 (B, C, H, W), targets int64 (B,)."""

    def __init__(self, images: Images, form: Form, *, in_memory: bool) -> None:
        self._images = images
        self._form = form
        self.lazy = not in_memory
        self._cores = cores.available()
        count = len(images.targets)
        self._kept: Tensor | None = None
        if in_memory:
            # Pages of an empty tensor cost nothing until they are written.
            self._kept = torch.empty((count, form.channels, form.height, form.width), dtype=torch.uint8)
            self._decoded = torch.zeros(count, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._images.targets)

    def targets(self) -> Tensor:
        return self._images.targets

    def nbytes(self) -> int:
        return len(self) * self._form.channels * self._form.height * self._form.width

    def sizes(self) -> Tensor | None:
        paths = self._images.paths
        if paths is None:
            return None
        with ThreadPoolExecutor(_THREADS) as pool:  # a network's file system answers each question by itself
            return torch.tensor(list(pool.map(_bytes, paths)), dtype=torch.long)

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        at = torch.as_tensor(indices, dtype=torch.long)
        if self._kept is None:
            inputs = torch.empty((len(at), *self._shape()), dtype=torch.uint8)
            self._decode(at, inputs, torch.arange(len(at)))
        else:
            missing = torch.tensor(sorted(set(at[~self._decoded[at]].tolist())), dtype=torch.long)
            self._decode(missing, self._kept, missing)
            self._decoded[missing] = True
            inputs = self._kept[at]
        return Inputs.of(inputs), self._images.targets[at]

    def in_memory(self) -> TensorSplit:
        if self._kept is None:
            return super().in_memory()
        missing = (~self._decoded).nonzero().flatten()
        self._decode(missing, self._kept, missing)
        self._decoded[missing] = True
        return TensorSplit(self._kept, self._images.targets)

    def _shape(self) -> tuple[int, int, int]:
        return self._form.channels, self._form.height, self._form.width

    def _decode(self, indices: Tensor, into: Tensor, places: Tensor) -> None:
        pairs = list(zip(indices.tolist(), places.tolist(), strict=True))
        # A worker process is one of several already; threads pay from a few images on only.
        threads = 1 if torch.utils.data.get_worker_info() else min(_THREADS, self._cores)
        chunk = 64 if self._kept is not None else 8
        starts = range(0, len(pairs), chunk)

        def some(start: int) -> None:
            for index, place in pairs[start : start + chunk]:
                into[place] = self._decode_one(index)

        if threads == 1 or len(starts) < 2:
            for start in starts:
                some(start)
            return
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(some, starts):
                pass

    def _decode_one(self, index: int) -> Tensor:
        name = self._images.name(index)
        try:
            with self._images.open(index) as image:
                array = _pixels(image, self._form)
        except _BROKEN as error:
            raise _unreadable(name, error) from error
        if array.shape != self._shape():
            raise DataError(
                f"{name} is {array.shape[2]}x{array.shape[1]} where the others are {self._form.width}x"
                f"{self._form.height}",
                f"resize them all: data.size={min(self._form.height, self._form.width)}",
            )
        return torch.from_numpy(array)


def _form(parts: Sequence[Images], size: int | None) -> Form:
    sizes: set[tuple[int, int]] = set()
    gray = True
    for part in parts:
        count = len(part.targets)
        if count == 0:
            continue
        for probe in range(min(count, PROBES)):
            index = probe * count // min(count, PROBES)
            try:
                with part.open(index) as image:
                    sizes.add(image.size)
                    gray = gray and image.mode in _GRAY
            except _BROKEN as error:
                raise _unreadable(part.name(index), error) from error
    channels = 1 if gray else 3
    if size is None and len(sizes) == 1:
        width, height = next(iter(sizes))
        return Form(channels, height, width, resize=False)
    side = size or DEFAULT_SIZE
    return Form(channels, side, side, resize=sizes != {(side, side)})


def _pixels(image: Image.Image, form: Form) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return an opened image as uint8 (C, H, W)."""
    if image.mode.startswith("I"):
        # 16 bits a pixel: PIL's own conversion clips at 255 instead of scaling.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image = image.convert("RGB" if form.channels == 3 else "L")
    if form.resize:
        image = _resize_and_crop(image, form.height)
    array = np.array(image)
    return np.ascontiguousarray(array.transpose(2, 0, 1)) if form.channels == 3 else array[None]


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to 8/7 of ``size`` (256 for 224; to ``size`` itself up to 64 pixels), then crop the
    centre.

    It is bilinear, and rounds as torchvision's Resize and CenterCrop, with which networks are usually evaluated.
    """
    shorter = size if size <= 64 else round(size * 8 / 7)
    width, height = image.size
    scaled = int(shorter * max(width, height) / min(width, height))
    target = (shorter, scaled) if width <= height else (scaled, shorter)
    image = image.resize(target, Image.Resampling.BILINEAR)
    x, y = (round((length - size) / 2.0) for length in target)
    return image.crop((x, y, x + size, y + size))


def _unreadable(name: str, error: BaseException) -> DataError:
    return DataError(
        f"{name} cannot be decoded: {type(error).__name__}: {error}", "replace the file, or take it out of the data set"
    )
