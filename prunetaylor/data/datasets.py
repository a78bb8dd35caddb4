"""Map-style data sets: how samples become batches, and where a batch has its targets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from prunetaylor.core.errors import DataError, PruneTaylorError
from prunetaylor.data.inputs import Collate, Collated, Inputs
from prunetaylor.data.splits import Split

TARGET_NAMES = ("labels", "label", "target", "targets", "y")
"""The entry of a dictionary that holds the targets, unless ``data.target`` names another; the first that is there."""


def stack(samples: list[Any]) -> Any:
    """Return samples as a batch: tensors, arrays, images and lists of numbers are stacked, in any nesting.

    It is torch's default collation, for which a list of numbers is an array, and None the same in every sample.
    """
    return collate([_as_arrays(sample) for sample in samples], collate_fn_map=_FUNCTIONS)


def _none(samples: list[Any], *, collate_fn_map: Any = None) -> None:
    return None


_FUNCTIONS = {**default_collate_fn_map, type(None): _none}


def separate_targets(batch: Any, target: str | None, name: str) -> tuple[Any, Any]:
    """Return the inputs and the targets of a batch, or of a single sample; the targets are None if there are none.

    A pair is (inputs, targets), a longer tuple ends with them, and a dictionary has them under one of the
    ``TARGET_NAMES``, or under ``target``; so does another object with attributes, which is passed to the network whole.
    Raises DataError, which calls the samples ``name``: there is no entry ``target``.
    """
    names = TARGET_NAMES if target is None else (target,)
    if isinstance(batch, Mapping):
        key = next((one for one in names if one in batch), None)
        if key is None and target is not None:
            raise DataError(f"the samples of {name} have no entry {target}", f"they have {', '.join(map(str, batch))}")
        return {one: part for one, part in batch.items() if one != key}, None if key is None else batch[key]
    if isinstance(batch, tuple | list):
        if len(batch) > 2:
            return tuple(batch[:-1]), batch[-1]
        return (batch[0], batch[1]) if len(batch) == 2 else (batch[0] if batch else None, None)
    if isinstance(batch, Tensor | np.ndarray):
        return batch, None
    return batch, next((value for one in names if isinstance(value := getattr(batch, one, None), Tensor)), None)


def as_tensors(value: Any) -> Any:
    """Return nested values with tensors for arrays and for lists of numbers."""
    if isinstance(value, np.ndarray | np.generic):
        return torch.from_numpy(np.asarray(value))
    if isinstance(value, Mapping):
        return {key: as_tensors(part) for key, part in value.items()}
    if type(value) is list and _are_numbers(value):
        return torch.tensor(value)
    if type(value) in (tuple, list):
        return type(value)(map(as_tensors, value))
    return value


def _as_arrays(value: Any) -> Any:
    """Return a sample with arrays for images and for lists of numbers, which torch would take for several values."""
    if hasattr(value, "getbands"):
        return _from_pil(value)
    if isinstance(value, Mapping):
        return {key: _as_arrays(part) for key, part in value.items()}
    if type(value) is list and _are_numbers(value):
        return torch.tensor(value)
    if type(value) in (tuple, list):
        return type(value)(map(_as_arrays, value))
    return value


def _are_numbers(values: list[Any]) -> bool:
    """Return whether nested lists of one length hold numbers alone."""
    if values and all(type(value) is list for value in values):
        return len({len(value) for value in values}) == 1 and all(map(_are_numbers, values))
    return bool(values) and all(isinstance(value, Number) for value in values)


def _from_pil(image: Any) -> Tensor:
    """Return a PIL image as uint8 (C, H, W)."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


class DatasetSplit(Split):
    """Any map-style data set with its own transforms.

    Its items are pairs (inputs, target), dictionaries with both, or inputs alone (``collate.separate_targets``); the
    entry with the targets may be named by ``target``. ``collate`` combines a list of items (a DataLoader's
    ``collate_fn``); by default items are stacked.
    """

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
        self.lazy = not isinstance(dataset, list)  # the items of a list need no decoding
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
