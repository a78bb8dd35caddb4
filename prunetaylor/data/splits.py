"""A split is raw samples by index: a tensor in memory, a view of another split, or any map-style data set.

``fetch`` returns the same content for the same indices every time, even with random transforms of a data set: they draw
from generators seeded by ``variant`` and the index. So calibration and measuring see fixed samples, and each epoch of
training asks for its own variant.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from prunetaylor.core.errors import DataError, PruneTaylorError
from prunetaylor.data.collate import as_tensors, separate_targets, stack
from prunetaylor.data.inputs import Collate, Collated, Inputs
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.runtime.processes.group import gather_objects, own_range, world


class Split(ABC):
    """Samples by index before preprocessing: inputs, such as a tensor (B, ...), and targets (B, ...), on the CPU."""

    #: decoding is so expensive that worker processes help, and nothing is kept in memory
    lazy: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        """Return B inputs and targets (B, ...) in the order of ``indices``; DataError names a bad sample."""

    @property
    def labelled(self) -> bool:
        """Return whether the samples have targets; without labels, targets are zeros."""
        return True

    def targets(self) -> Tensor | None:
        """Return the targets of all samples (N, ...) if they are known without decoding, else None."""
        return None

    def nbytes(self) -> int | None:
        """Return the bytes of all inputs once in memory, if that is known without decoding, else None."""
        return None

    def sizes(self) -> Tensor | None:
        """Return the bytes of each sample's file (N,), which reveal changes without decoding, or None."""
        return None

    @property
    def is_in_memory(self) -> bool:
        """Return whether all inputs are in memory, so that fetching one decodes nothing."""
        return False

    @property
    def collate(self) -> Collate | None:
        """Return the user's function that combines samples, if there is one."""
        return None

    def subset(self, indices: Sequence[int]) -> Split:
        """Return a view of these samples in this order, without a copy."""
        return Subset(self, indices)

    def origin(self, index: int) -> int:
        """Return the sample's index in the source."""
        return index

    def in_memory(self) -> TensorSplit:
        """Return all samples, decoded once."""
        return TensorSplit(*self.fetch(range(len(self))))


class TensorSplit(Split):
    """Inputs of N samples and targets (N, ...) in memory; without targets the samples are not labelled."""

    def __init__(self, inputs: Tensor | Inputs, targets: Tensor | None = None) -> None:
        self._labelled = targets is not None
        if isinstance(inputs, Tensor) and inputs.ndim == 0:
            raise DataError("the inputs are a single number", "give a tensor (N, ...)")
        self.inputs = inputs if isinstance(inputs, Inputs) else Inputs.of(inputs)
        if targets is None:
            targets = torch.zeros(len(self.inputs), dtype=torch.long)
        if targets.ndim == 0 or len(self.inputs) != len(targets):
            counts = f"{len(self.inputs)} and {len(targets) if targets.ndim else tuple(targets.shape)}"
            raise DataError(f"inputs and targets differ in length: {counts}", "give as many targets as inputs")
        self._targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def labelled(self) -> bool:
        return self._labelled

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        if isinstance(indices, range) and indices.step == 1:
            part = slice(indices.start, indices.stop)
            return self.inputs.rows(part), self._targets[part]
        at = torch.as_tensor(indices, dtype=torch.long, device=self._targets.device)
        return self.inputs.rows(indices), self._targets.index_select(0, at)

    def targets(self) -> Tensor:
        return self._targets

    def nbytes(self) -> int:
        return self.inputs.nbytes

    @property
    def is_in_memory(self) -> bool:
        return True

    def in_memory(self) -> TensorSplit:
        return self

    def to(self, device: torch.device) -> TensorSplit:
        """Return the split on another device."""
        return TensorSplit(self.inputs.to(device), self._targets.to(device) if self.labelled else None)


class WithTargets(Split):
    """The inputs of another split with other targets (N, ...), or without labels."""

    def __init__(self, parent: Split, targets: Tensor, labelled: bool = True) -> None:
        self._parent, self._targets, self._labelled = parent, targets, labelled
        self.lazy = parent.lazy

    def __len__(self) -> int:
        return len(self._parent)

    @property
    def labelled(self) -> bool:
        return self._labelled

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        return self._parent.fetch(indices, variant)[0], self._targets[torch.as_tensor(indices, dtype=torch.long)]

    def origin(self, index: int) -> int:
        return self._parent.origin(index)

    def targets(self) -> Tensor:
        return self._targets

    def nbytes(self) -> int | None:
        return self._parent.nbytes()

    def sizes(self) -> Tensor | None:
        return self._parent.sizes()

    @property
    def is_in_memory(self) -> bool:
        return self._parent.is_in_memory

    @property
    def collate(self) -> Collate | None:
        return self._parent.collate


def decode_sharded(split: Split) -> TensorSplit:
    """Return all samples in memory on every process of a run; each process decodes its part of lazy data."""
    if not split.lazy or world() == 1:
        return split.in_memory()
    own = own_range(len(split))
    inputs, targets = split.fetch(own or range(1))
    targets = gather_rows(targets[: len(own)])
    if (tensor := inputs.tensor) is not None and inputs.collated is None:
        return TensorSplit(gather_rows(tensor[: len(own)]), targets)
    parts = gather_objects(inputs.sendable() if own else None)
    return TensorSplit(Inputs.cat([part.collated_by(split.collate) for part in parts if part is not None]), targets)


class Subset(Split):
    """Some samples of another split, in an order of their own."""

    def __init__(self, parent: Split, indices: Sequence[int]) -> None:
        self._parent = parent
        self._indices = list(indices)
        self.lazy = parent.lazy

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def labelled(self) -> bool:
        return self._parent.labelled

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        return self._parent.fetch([self._indices[i] for i in indices], variant)

    def origin(self, index: int) -> int:
        return self._parent.origin(self._indices[index])

    def targets(self) -> Tensor | None:
        targets = self._parent.targets()
        return None if targets is None else targets[torch.tensor(self._indices, dtype=torch.long)]

    def nbytes(self) -> int | None:
        whole = self._parent.nbytes()
        return None if whole is None else whole * len(self) // max(1, len(self._parent))

    def sizes(self) -> Tensor | None:
        whole = self._parent.sizes()
        return None if whole is None else whole[torch.tensor(self._indices, dtype=torch.long)]

    @property
    def is_in_memory(self) -> bool:
        return self._parent.is_in_memory

    @property
    def collate(self) -> Collate | None:
        return self._parent.collate


class DatasetSplit(Split):
    """Any map-style data set with its own transforms.

    Its items are pairs (inputs, target), dictionaries with both, or inputs alone (``collate.separate_targets``); the
    entry with the targets may be named by ``target``. ``collate`` combines a list of items (a DataLoader's
    ``collate_fn``); by default items are stacked.
    """

    lazy = True

    def __init__(
        self,
        dataset: Any,
        *,
        name: str = "the data set",
        collate: Collate | None = None,
        target: str | None = None,
    ) -> None:
        try:
            self._length = len(dataset)
            self._item = dataset.__getitem__
        except (TypeError, AttributeError) as error:
            raise DataError(
                f"{name} is a {type(dataset).__name__}, which has no length or no items by index",
                "give a map-style data set (__len__ and __getitem__), or tensors (x, y)",
            ) from error
        self._name, self._collate, self._target = name, collate, target
        self._labelled: bool | None = None  # not known yet

    def __len__(self) -> int:
        return self._length

    @property
    def labelled(self) -> bool:
        if self._labelled is None:
            with _own_randomness():
                self._labelled = self._combine([self._read(0)])[1] is not None
        return self._labelled

    @property
    def collate(self) -> Collate | None:
        return None if self._collate is None else self._collate_inputs

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Inputs, Tensor]:
        if not len(indices):
            return Inputs.of(torch.empty(0)), torch.empty(0)
        items = []
        with _own_randomness() as seed:
            for index in indices:
                seed(variant * 1_000_003 + index)
                items.append(self._read(index))
        parts, targets = self._combine(items)
        if targets is None:
            if self.labelled:
                raise DataError(f"a sample of {self._name} has no target", "give all of them one, or none")
            targets = torch.zeros(len(items), dtype=torch.long)
        targets = _as_target(_as_tensor(targets, self._name))
        if not targets.dim() or len(targets) != len(items):
            raise DataError(
                f"{len(items)} samples of {self._name} give targets of shape {tuple(targets.shape)}",
                "give one target for each sample",
            )
        return Inputs.of(parts, len(items), None if self.collate is None else Collated(items, self.collate)), targets

    def _read(self, index: int) -> Any:
        try:
            return self._item(index)
        except PruneTaylorError:
            raise
        except Exception as error:
            cause = f"sample {index} of {self._name} cannot be read: {type(error).__name__}: {error}"
            raise DataError(cause, "fix the data set, or leave the sample out") from error

    def _collate_inputs(self, items: list[Any]) -> Any:
        return self._combine(items)[0]

    def _combine(self, items: list[Any]) -> tuple[Any, Any]:
        """Return the inputs and the targets of items; the targets are None if there are none."""
        try:
            batch = (self._collate or stack)(items)
        except PruneTaylorError:
            raise
        except Exception as error:
            raise DataError(
                f"the samples of {self._name} cannot be stacked into a batch: {type(error).__name__}: {error}",
                "all inputs must have one shape: resize or crop them in the data set's transform, or pad them in a "
                "collate function (a DataLoader's collate_fn, data.collate)",
            ) from error
        inputs, targets = separate_targets(batch, self._target, self._name)
        inputs = as_tensors(inputs)
        if not any(isinstance(leaf, Tensor) or hasattr(leaf, "to") for leaf in tree_leaves(inputs)):
            raise DataError(
                f"the inputs of {self._name} contain no tensor ({type(inputs).__name__})",
                "make its items pairs (input, target) of tensors, arrays, images or numbers",
            )
        return inputs, targets


def _as_tensor(value: Any, name: str) -> Tensor:
    value = as_tensors(value)
    if not isinstance(value, Tensor):
        raise DataError(
            f"{name} gives a {type(value).__name__} as targets, where a tensor is expected",
            "make its targets tensors, arrays or numbers",
        )
    return value


def _as_target(targets: Tensor) -> Tensor:
    """Return whole numbers as int64, and float64, which Python's floats become, as float32."""
    if targets.is_floating_point():
        return targets.float()
    return targets.long()


@contextmanager
def _own_randomness() -> Iterator[Callable[[int], None]]:
    """Yield a function that seeds torch's CPU, Python's and numpy's generators; restore their states afterwards."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()

    def seed(value: int) -> None:
        torch.default_generator.manual_seed(value % 2**63)
        random.seed(value)
        np.random.seed(value % 2**32)

    try:
        yield seed
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
