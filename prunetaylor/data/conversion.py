"""Conversion of Python objects (tensors, arrays, data sets, DataLoaders) into splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate, default_convert
from torch.utils.data import Subset as TorchSubset

from prunetaylor.core.errors import DataError
from prunetaylor.data.datasets import DatasetSplit, separate_targets
from prunetaylor.data.inputs import Collate, Inputs
from prunetaylor.data.splits import Split, TensorSplit

_REMEDY = (
    "give a data set (__len__ and __getitem__ giving (input, target)), a DataLoader of one, or tensors (x, y); "
    "x alone has no labels"
)


def as_split(value: Any, name: str, *, target: str | None = None, collate: Collate | None = None) -> Split:
    """Return a split of a split, a map-style data set, a DataLoader of one, or tensors or arrays (x, y).

    x may be nested: tuples hold positional arguments of the network, dictionaries keyword arguments. The targets of a
    dictionary are its entry ``target``, or one of a usual name. Inputs alone (x, (x, None), or a data set of inputs)
    are samples without labels. From a DataLoader only the data set and a custom ``collate_fn`` are used, not its order
    or batch size; ``collate`` replaces it. Raises DataError, which calls the value ``name``, for anything else and for
    an empty data set.
    """
    split = _convert(value, name, target, collate)
    if len(split) == 0:
        raise DataError(f"{name} has no samples", "give at least one")
    return split


def _convert(value: Any, name: str, target: str | None, collate: Collate | None) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, DataLoader):
        own = None if value.collate_fn in (default_collate, default_convert) else value.collate_fn
        return _convert(value.dataset, name, target, collate or own)
    if collate is not None:
        return _dataset(value, name, target, collate)
    if isinstance(value, TorchSubset):
        return _convert(value.dataset, name, target, None).subset(list(value.indices))
    if isinstance(value, TensorDataset):
        value = value.tensors if len(value.tensors) == 2 else separate_targets(value.tensors, target, name)
    elif isinstance(value, Mapping | Tensor | np.ndarray):
        value = separate_targets(value, target, name)
    if isinstance(value, tuple | list) and len(value) == 2 and _is_array_or_none(value[1]) and _are_arrays(value[0]):
        return _in_memory(value[0], value[1], name)
    return _dataset(value, name, target, None)


def _is_array_or_none(value: Any) -> bool:
    return value is None or isinstance(value, Tensor | np.ndarray)


def _are_arrays(value: Any) -> bool:
    """Return whether nested inputs consist of arrays alone, as those of many samples do."""
    if isinstance(value, Mapping):
        return bool(value) and all(map(_are_arrays, value.values()))
    if isinstance(value, tuple):
        return bool(value) and all(map(_are_arrays, value))
    return isinstance(value, Tensor | np.ndarray)


def _in_memory(x: Any, y: Tensor | np.ndarray[Any, Any] | None, name: str) -> TensorSplit:
    inputs = Inputs.of(tree_map(lambda part: tensor(part, f"{name}: x"), Inputs.of(x, 0).tree))
    if not inputs.divisible:
        raise DataError(f"the inputs of {name} differ in length", "give tensors (N, ...) with one row for each sample")
    return TensorSplit(inputs, None if y is None else target(tensor(y, f"{name}: y")))


def _dataset(dataset: Any, name: str, target: str | None, collate: Collate | None) -> Split:
    if isinstance(dataset, IterableDataset):
        raise DataError(f"{name} is an iterable data set: its samples cannot be drawn by index", _REMEDY)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or isinstance(dataset, str | dict):
        raise DataError(f"{name} is a {type(dataset).__name__}, not a data set", _REMEDY)
    return DatasetSplit(dataset, name=name, collate=collate, target=target)


def tensor(array: Tensor | np.ndarray[Any, Any], name: str) -> Tensor:
    """Return the array as a tensor, float64 as float32.

    Raises DataError for types that torch does not have (objects, text).
    """
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "biuf":
            raise DataError(f"{name} has the type {array.dtype}, not numbers", "save it as uint8, int64 or float32")
        # ascontiguousarray makes a scalar one-dimensional, and byte orders but the machine's are unknown to torch.
        array = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=None))
    return array.float() if array.dtype == torch.float64 else array


def target(values: Tensor) -> Tensor:
    """Return whole numbers as int64, (N, 1) of them as (N,), and anything else unchanged."""
    if values.is_floating_point() or values.is_complex():
        return values
    return values.long().flatten() if values.ndim == 2 and values.shape[1] == 1 else values.long()
