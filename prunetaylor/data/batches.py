"""Batches: ready inputs and targets on the device, in a fixed order or a fresh random one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prunetaylor.data.preprocess import Preprocess
from prunetaylor.data.splits import Split, TensorSplit
from prunetaylor.errors import PruneTaylorError

Part = tuple[Tensor, Tensor]
#: raw samples up to this many bytes stay on a CUDA device between epochs
RESIDENT = 2 * 2**30


class Batches:
    """Iterating gives (x, y) on ``device``: x preprocessed (B, ...), y as the split has it (int64 (B,) class ids).

    Without ``shuffle`` every iteration gives the same batches. With it, each draws a fresh permutation, and fresh
    random transforms of the data set, from ``generator``. ``augment`` changes raw inputs on the device, drawing from
    ``generator`` too. ``workers`` processes decode data that is read on the fly (on Linux); other splits are sliced in
    this process. Nothing depends on their number.
    ``drop_last`` leaves out a last batch that is not full, unless it is the only one.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        *,
        batch_size: int,
        device: torch.device | str,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        generator: torch.Generator | None = None,
        shuffle: bool = False,
        workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        if generator is None and (shuffle or augment is not None):
            raise ValueError("shuffle and augment draw from a generator: give one")
        self.split = split
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.augment = augment
        self.generator = generator
        self.shuffle = shuffle
        full = len(split) // batch_size * batch_size
        #: samples that one iteration gives
        self.samples = full if drop_last and full else len(split)
        # Data sets of a user's own file cannot be pickled, so workers are forked, which only Linux does safely.
        self._workers = workers if split.on_the_fly and sys.platform == "linux" else 0
        self._loader: DataLoader[Any] | None = None
        self._resident: TensorSplit | None = None

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Part]:
        for raw, y in self._raw():
            x = raw.to(self.device, non_blocking=True)
            if self.augment is not None and self.generator is not None:
                x = self.augment(x, self.generator)
            yield self.preprocess(x), y.to(self.device, non_blocking=True)

    def _raw(self) -> Iterator[Part]:
        if self._workers and len(self):
            return self._decoded_by_workers()
        source = self._on_device() if self.device.type == "cuda" else self.split
        return (source.fetch(indices, variant) for variant, indices in self._plan())

    def _plan(self) -> Iterator[tuple[int, range | list[int]]]:
        """What to fetch for each batch of one iteration: the variant of random transforms, and the indices."""
        starts = range(0, self.samples, self.batch_size)
        ends = [min(start + self.batch_size, self.samples) for start in starts]
        if not self.shuffle or self.generator is None:
            yield from ((0, range(start, end)) for start, end in zip(starts, ends, strict=True))
            return
        device = self.generator.device
        variant = int(torch.randint(1, 2**31, (1,), generator=self.generator, device=device))
        order = torch.randperm(len(self.split), generator=self.generator, device=device).tolist()
        yield from ((variant, order[start:end]) for start, end in zip(starts, ends, strict=True))

    def _on_device(self) -> Split:
        """The raw samples themselves, moved once, where they are small: slices then cost no transfer."""
        size = self.split.nbytes()
        if self._resident is None and not self.split.on_the_fly and size is not None and size <= RESIDENT:
            self._resident = self.split.in_memory().to(self.device)
        return self.split if self._resident is None else self._resident

    def _decoded_by_workers(self) -> Iterator[Part]:
        if self._loader is None:
            self._loader = DataLoader(
                _Fetched(self.split),
                batch_size=None,
                sampler=_Plan(self),
                num_workers=self._workers,
                collate_fn=_as_it_is,
                persistent_workers=True,
                pin_memory=self.device.type == "cuda",
                multiprocessing_context="fork",
                # Its own seeds come from here instead of torch's global generator.
                generator=torch.Generator(),
            )
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads; the workers start no torch threads of their own.
            warnings.filterwarnings("ignore", message=".*use of fork.*", category=DeprecationWarning)
            parts = iter(self._loader)
        for part in parts:
            if isinstance(part, PruneTaylorError):
                raise part
            yield part


class _Plan:
    """A DataLoader's sampler that plans anew for each iteration."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[tuple[int, range | list[int]]]:
        return self._batches._plan()

    def __len__(self) -> int:
        return len(self._batches)


class _Fetched(torch.utils.data.Dataset[Any]):
    """Whole batches by their plan. Errors travel as values: a worker would fold cause and remedy into a traceback."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __getitem__(self, planned: tuple[int, range | list[int]]) -> Part | PruneTaylorError:
        variant, indices = planned
        try:
            return self._split.fetch(indices, variant)
        except PruneTaylorError as error:
            error.__cause__ = None  # may not pickle
            return error


def _as_it_is(part: Any) -> Any:
    return part
