"""Batches are ready inputs and targets on the device, in a fixed order or a fresh random one.

Several processes divide them: ``own`` gives a process its part of the samples in their order, for sums over all of
them; ``shards`` gives it its rows of every batch, for training. Random numbers are drawn for whole batches, identically
on every process; each sample is fetched only by the processes that need it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from prunetaylor.core.errors import PruneTaylorError
from prunetaylor.data.augment import Augment
from prunetaylor.data.inputs import Inputs
from prunetaylor.data.preprocess import Preprocess
from prunetaylor.data.row_random import RowRandom
from prunetaylor.data.splits import Split, TensorSplit
from prunetaylor.runtime.processes.group import own_range

Part = tuple[Inputs, Tensor]
FetchPlan = list[tuple[int, range | list[int]]]
#: raw samples up to this many bytes stay on a CUDA device between epochs
RESIDENT = 2 * 2**30


@dataclass(frozen=True)
class BatchShard:
    """This process's rows of a batch of ``batch_size`` samples: x of B samples and y (B, ...); B may be 0."""

    x: Inputs
    y: Tensor
    batch_size: int

    @property
    def weight(self) -> float:
        """Return the weight of the mean over these rows in the mean over the batch."""
        return len(self.x) / self.batch_size


class Batches:
    """An iterable of (x, y) on ``device``: x preprocessed, of B samples; y as the split has it (int64 (B,) class ids).

    Iterating gives all batches on every process; :meth:`own` and :meth:`shards` give a process its part.

    Without ``shuffle`` every iteration gives the same batches. With it, each iteration draws a fresh permutation, and
    fresh random transforms of the data set, from ``generator``. ``augment`` changes raw inputs on the device and draws
    from ``generator`` too; ``mix`` then mixes the inputs of a whole batch. ``workers`` processes decode lazy data (on
    Linux); other splits are sliced in this process. Their number changes no result. ``drop_last`` omits a last batch
    that is not full, unless it is the only one.
    """

    def __init__(
        self,
        split: Split,
        preprocess: Preprocess,
        *,
        batch_size: int,
        device: torch.device | str,
        augment: Augment | None = None,
        mix: Augment | None = None,
        generator: torch.Generator | None = None,
        shuffle: bool = False,
        workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {batch_size}")
        if generator is None and (shuffle or augment is not None or mix is not None):
            raise ValueError("shuffle, augment and mix draw from a generator: give one")
        self.split = split
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.augment = augment
        self.mix = mix
        self.generator = generator
        self.shuffle = shuffle
        full = len(split) // batch_size * batch_size
        #: samples that one iteration gives
        self.samples = full if drop_last and full else len(split)
        # Data sets of a user's own file cannot be pickled, so workers are forked, which only Linux does safely.
        self._workers = workers if split.lazy and sys.platform == "linux" else 0
        self._sampler = _Planned()
        self._loader: DataLoader[Any] | None = None
        self._start: Tensor | None = None  # the generator's state when the last iteration began
        self._given = 0  # batches that it has given
        self._resumed: Mapping[str, Any] | None = None
        self._resident: TensorSplit | None = None

    def __len__(self) -> int:
        return -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Part]:
        spans = self._spans(0, self.samples)
        for index, (raw, y) in self._walk(spans):
            start, end = spans[index]
            ready = self._ready(raw, y, end - start, range(end - start))
            self._given = index + 1
            yield ready

    def own(self, edges: Sequence[int] | None = None) -> Iterator[tuple[int, Inputs, Tensor]]:
        """Yield (index of the first sample, x, y) for this process's part of the samples, in their order.

        A single process gets all of them. With ``edges`` (0, ..., N), the boundaries of groups of samples, groups stay
        whole.
        """
        if self.shuffle or self.augment is not None or self.mix is not None:
            raise ValueError("batches that are shuffled or changed are divided row by row: see shards")
        edges = range(self.samples + 1) if edges is None else edges
        part = own_range(len(edges) - 1)
        spans = self._spans(edges[part.start], edges[part.stop])
        for (start, end), (raw, y) in zip(spans, self._raw(self._plan(spans)), strict=True):
            yield start, *self._ready(raw, y, end - start, range(end - start))

    def own_count(self) -> int:
        """Return the number of batches that :meth:`own` yields, which may be 0."""
        return -(-len(own_range(self.samples)) // self.batch_size)

    def shards(self) -> Iterator[BatchShard]:
        """Yield this process's rows of every batch; the number of batches is the same on every process."""
        whole = self._spans(0, self.samples)
        parts = [own_range(end - start) for start, end in whole]
        mixed = self.mix is not None
        spans = whole if mixed else [_fetched_rows(span[0], rows) for span, rows in zip(whole, parts, strict=True)]
        for index, (raw, y) in self._walk(spans):
            start, end = whole[index]
            shard = BatchShard(*self._ready(raw, y, end - start, parts[index]), end - start)
            self._given = index + 1
            yield shard

    def state_dict(self) -> dict[str, Any]:
        """Return the position between two batches, of an iteration over all batches or over shards."""
        now = None if self.generator is None else self.generator.get_state()
        return {"start": self._start, "given": self._given, "now": now}

    def load_state_dict(self, state: Mapping[str, Any], *, finished: bool = False) -> None:
        """Let the next iteration continue from ``state``, or start the one after it if that one was ``finished``."""
        if not finished:
            self._resumed = state
        elif self.generator is not None:
            self.generator.set_state(state["now"])

    def _walk(self, spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, Part]]:
        """Yield (a batch's number, its raw samples), from the position of a loaded state on."""
        resumed, self._resumed = self._resumed, None
        if self.generator is not None:
            if resumed is not None:
                self.generator.set_state(resumed["start"])
            self._start = self.generator.get_state()
        plan, self._given = self._plan(spans), 0
        if resumed is not None:
            self._given = resumed["given"]
            if self.generator is not None:
                self.generator.set_state(resumed["now"])
        yield from enumerate(self._raw(plan[self._given :]), start=self._given)

    def _spans(self, low: int, high: int) -> list[tuple[int, int]]:
        return [(start, min(start + self.batch_size, high)) for start in range(low, high, self.batch_size)]

    def _ready(self, raw: Inputs, y: Tensor, batch_size: int, rows: range) -> Part:
        """Return the ``rows`` of a batch from its raw samples, which are the whole batch if inputs are mixed."""
        x, y = raw.to(self.device), y.to(self.device, non_blocking=True)
        if self.mix is None:
            x, y = x.rows(slice(len(rows))), y[: len(rows)]
        drawn = range(batch_size) if self.mix is not None else rows
        if self.augment is not None and self.generator is not None:
            x = _changed(x, self.augment, RowRandom(self.generator, batch_size, drawn))
        if self.mix is not None and self.generator is not None:
            x = _changed(x, self.mix, RowRandom(self.generator, batch_size)).rows(slice(rows.start, rows.stop))
            y = y[rows.start : rows.stop]
        return self.preprocess(x), y

    def _raw(self, plan: FetchPlan) -> Iterator[Part]:
        if self._workers and plan:
            return self._decoded_by_workers(plan)
        source = self._on_device() if self.device.type == "cuda" else self.split
        return (source.fetch(indices, variant) for variant, indices in plan)

    def _plan(self, spans: Sequence[tuple[int, int]]) -> FetchPlan:
        """Return (variant of random transforms, indices) to fetch for each batch of one iteration."""
        if not self.shuffle or self.generator is None:
            return [(0, range(start, end)) for start, end in spans]
        device = self.generator.device
        variant = int(torch.randint(1, 2**31, (1,), generator=self.generator, device=device))
        order = torch.randperm(len(self.split), generator=self.generator, device=device).tolist()
        return [(variant, order[start:end]) for start, end in spans]

    def _on_device(self) -> Split:
        """Return the split, or a copy on the device if it is small, which saves a transfer for each batch."""
        size = self.split.nbytes()
        if self._resident is None and not self.split.lazy and size is not None and size <= RESIDENT:
            self._resident = self.split.in_memory().to(self.device)
        return self.split if self._resident is None else self._resident

    def _decoded_by_workers(self, plan: FetchPlan) -> Iterator[Part]:
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
            inputs, targets = part
            yield inputs.collated_by(self.split.collate), targets


def _changed(x: Inputs, change: Augment, draws: RowRandom) -> Inputs:
    """Return images changed as a whole batch, with random numbers that single samples could not repeat."""
    assert x.tensor is not None  # only images are augmented and mixed
    return Inputs.of(change(x.tensor, draws))


def _fetched_rows(start: int, rows: range) -> tuple[int, int]:
    """Return the span to fetch for these rows of a batch; without rows one sample, which shows the shape."""
    return (start + rows.start, start + rows.stop) if rows else (start, start + 1)


class _Planned:
    """A DataLoader's sampler whose plan changes with each iteration."""

    plan: FetchPlan

    def __iter__(self) -> Iterator[tuple[int, range | list[int]]]:
        return iter(self.plan)

    def __len__(self) -> int:
        return len(self.plan)


class _Fetched(torch.utils.data.Dataset[Any]):
    """Whole batches by plan. Errors travel as values: a worker would fold cause and remedy into a traceback."""

    def __init__(self, split: Split) -> None:
        self._split = split

    def __getitem__(self, planned: tuple[int, range | list[int]]) -> Part | PruneTaylorError:
        variant, indices = planned
        try:
            inputs, targets = self._split.fetch(indices, variant)
            return inputs.sendable(), targets
        except PruneTaylorError as error:
            error.__cause__ = None  # may not pickle
            return error


def _as_it_is(part: Any) -> Any:
    return part
