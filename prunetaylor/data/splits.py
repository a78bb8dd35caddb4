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
from torch.utils.data import default_collate

from prunetaylor.core.errors import DataError, PruneTaylorError
from prunetaylor.runtime.processes.exchange import gather_rows
from prunetaylor.runtime.processes.group import own_range


class Split(ABC):
    """Samples by index before preprocessing: inputs (B, ...) uint8 or float, targets (B, ...), both on the CPU."""

    #: decoding is so expensive that worker processes help, and nothing is kept in memory
    lazy: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Tensor, Tensor]:
        """Return inputs (B, ...) and targets (B, ...) in the order of ``indices``; DataError names a bad sample."""

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
    """Inputs (N, ...) and targets (N, ...) as tensors; without targets the samples are not labelled."""

    def __init__(self, inputs: Tensor, targets: Tensor | None = None) -> None:
        self._labelled = targets is not None
        if targets is None:
            targets = torch.zeros(inputs.shape[:1], dtype=torch.long)
        if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
            shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
            raise DataError(f"inputs and targets differ in length: {shapes}", "give as many targets as inputs")
        self.inputs = inputs
        self._targets = targets

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def labelled(self) -> bool:
        return self._labelled

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Tensor, Tensor]:
        if isinstance(indices, range) and indices.step == 1:
            return self.inputs[indices.start : indices.stop], self._targets[indices.start : indices.stop]
        at = torch.as_tensor(indices, dtype=torch.long, device=self.inputs.device)
        return self.inputs.index_select(0, at), self._targets.index_select(0, at)

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

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Tensor, Tensor]:
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


def decode_sharded(split: Split) -> TensorSplit:
    """Return all samples in memory on every process of a run; each process decodes its part of lazy data."""
    if not split.lazy:
        return split.in_memory()
    own = own_range(len(split))
    inputs, targets = split.fetch(own) if own else (torch.empty(0), torch.empty(0))
    return TensorSplit(gather_rows(inputs), gather_rows(targets))


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

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Tensor, Tensor]:
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


Collate = Callable[[list[Any]], Any]


class DatasetSplit(Split):
    """Any map-style data set of (input, target) pairs, or of inputs alone, with its own transforms.

    ``collate`` combines a list of items (a DataLoader's ``collate_fn``); by default items are stacked.
    """

    lazy = True

    def __init__(self, dataset: Any, *, name: str = "the data set", collate: Collate | None = None) -> None:
        try:
            self._length = len(dataset)
            self._item = dataset.__getitem__
        except (TypeError, AttributeError) as error:
            raise DataError(
                f"{name} is a {type(dataset).__name__}, which has no length or no items by index",
                "give a map-style data set (__len__ and __getitem__), or tensors (x, y)",
            ) from error
        self._name = name
        self._collate = collate or _stack
        self._labelled: bool | None = True if collate else None  # None: not known yet

    def __len__(self) -> int:
        return self._length

    @property
    def labelled(self) -> bool:
        if self._labelled is None:
            with _own_randomness():
                self._labelled = not _is_input(self._read(0))
        return self._labelled

    def fetch(self, indices: Sequence[int], variant: int = 0) -> tuple[Tensor, Tensor]:
        items = []
        with _own_randomness() as seed:
            for index in indices:
                seed(variant * 1_000_003 + index)
                items.append(self._get(index))
        try:
            inputs, targets = self._collate(items)
        except PruneTaylorError:
            raise
        except Exception as error:
            raise DataError(
                f"the samples of {self._name} cannot be stacked into a batch: {type(error).__name__}: {error}",
                "all inputs must have one shape; resize or crop them in the data set's transform",
            ) from error
        return _as_tensor(inputs, self._name), _as_target(_as_tensor(targets, self._name))

    def _read(self, index: int) -> Any:
        try:
            return self._item(index)
        except PruneTaylorError:
            raise
        except Exception as error:
            cause = f"sample {index} of {self._name} cannot be read: {type(error).__name__}: {error}"
            raise DataError(cause, "fix the data set, or leave the sample out") from error

    def _get(self, index: int) -> Any:
        item = self._read(index)
        if _is_input(item) and not self.labelled:
            return _from_pil(item), 0
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"sample {index} of {self._name} is a {type(item).__name__}, not a pair (input, target)",
                "make the data set return (input, target)",
            )
        return _from_pil(item[0]), item[1]


def _is_input(item: Any) -> bool:
    """Return whether an item is an input without a target."""
    return isinstance(item, Tensor | np.ndarray) or hasattr(item, "getbands")


def _stack(items: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    if not items:
        return torch.empty(0), torch.empty(0)
    return default_collate([x for x, _ in items]), default_collate([y for _, y in items])


def _from_pil(value: Any) -> Any:
    """Return a PIL image as uint8 (C, H, W), and anything else unchanged."""
    if not hasattr(value, "getbands"):
        return value
    array = np.array(value)
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


def _as_tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, Tensor):
        raise DataError(
            f"{name} gives a {type(value).__name__} where a tensor is expected",
            "make its items pairs of tensors, arrays, images or numbers",
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
