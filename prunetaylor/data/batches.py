"""Batches: ready inputs and targets on the device, in a fixed order or a fresh random one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prunetaylor.data.preprocess import Preprocess
from prunetaylor.data.splits import Split, TensorSplit
from prunetaylor.errors import PruneTaylorError

Part = tuple[Tensor, Tensor]
Plan = list[tuple[int, range | list[int]]]
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
        self._sampler = _Planned()
        self._loader: DataLoader[Any] | None = None
        self._start: Tensor | None = None  # the generator's state when the last iteration began
        self._given = 0  # batches that it has given
        self._resumed: Mapping[str, Any] | None = None
        self._resident: TensorSplit | None = None

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Part]:
        resumed, self._resumed = self._resumed, None
        if self.generator is not None:
            if resumed is not None:
                self.generator.set_state(resumed["start"])
            self._start = self.generator.get_state()
        plan, self._given = self._plan(), 0
        if resumed is not None:
            self._given = resumed["given"]
            if self.generator is not None:
                self.generator.set_state(resumed["now"])
        for raw, y in self._raw(plan[self._given :]):
            x = raw.to(self.device, non_blocking=True)
            if self.augment is not None and self.generator is not None:
                x = self.augment(x, self.generator)
            ready = self.preprocess(x), y.to(self.device, non_blocking=True)
            self._given += 1
            yield ready

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands, between two batches."""
        now = None if self.generator is None else self.generator.get_state()
        return {"start": self._start, "given": self._given, "now": now}

    def load_state_dict(self, state: Mapping[str, Any], *, finished: bool = False) -> None:
        """The next iteration goes on from there; where that one was ``finished``, the one after it begins."""
        if not finished:
            self._resumed = state
        elif self.generator is not None:
            self.generator.set_state(state["now"])

    def _raw(self, plan: Plan) -> Iterator[Part]:
        if self._workers and plan:
            return self._decoded_by_workers(plan)
        source = self._on_device() if self.device.type == "cuda" else self.split
        return (source.fetch(indices, variant) for variant, indices in plan)

    def _plan(self) -> Plan:
        """What to fetch for each batch of one iteration: the variant of random transforms, and the indices."""
        starts = range(0, self.samples, self.batch_size)
        ends = [min(start + self.batch_size, self.samples) for start in starts]
        if not self.shuffle or self.generator is None:
            return [(0, range(start, end)) for start, end in zip(starts, ends, strict=True)]
        device = self.generator.device
        variant = int(torch.randint(1, 2**31, (1,), generator=self.generator, device=device))
        order = torch.randperm(len(self.split), generator=self.generator, device=device).tolist()
        return [(variant, order[start:end]) for start, end in zip(starts, ends, strict=True)]

    def _on_device(self) -> Split:
        """The raw samples themselves, moved once, where they are small: slices then cost no transfer."""
        size = self.split.nbytes()
        if self._resident is None and not self.split.on_the_fly and size is not None and size <= RESIDENT:
            self._resident = self.split.in_memory().to(self.device)
        return self.split if self._resident is None else self._resident

    def _decoded_by_workers(self, plan: Plan) -> Iterator[Part]:
        self._sampler.plan = plan
        if self._loader is None:
            self._loader = DataLoader(
                _Fetched(self.split),
                batch_size=None,
                sampler=self._sampler,
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


class _Planned:
    """A DataLoader's sampler whose plan is another one for each iteration."""

    plan: Plan

    def __iter__(self) -> Iterator[tuple[int, range | list[int]]]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)


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
