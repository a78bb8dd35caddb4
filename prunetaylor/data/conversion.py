"""Conversion of Python objects (tensors, arrays, data sets, DataLoaders) into splits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate
from torch.utils.data import Subset as TorchSubset

from prunetaylor.core.errors import DataError
from prunetaylor.data.splits import DatasetSplit, Split, TensorSplit

_REMEDY = (
    "give a data set (__len__ and __getitem__ giving (input, target)), a DataLoader of one, or tensors (x, y); "
    "x alone has no labels"
)


def as_split(value: Any, name: str) -> Split:
    """Return a split of a split, a map-style data set, a DataLoader of one, or a pair (x, y) of tensors or arrays.

    Inputs alone (x, (x, None), or a data set of inputs) are samples without labels. From a DataLoader only the data set
    and a custom ``collate_fn`` are used, not its order or batch size. Raises DataError, which calls the value ``name``,
    for anything else and for an empty data set.
    """
    split = _convert(value, name)
    if len(split) == 0:
        raise DataError(f"{name} has no samples", "give at least one")
    return split


def _convert(value: Any, name: str) -> Split:
    if isinstance(value, Split):
        return value
    if isinstance(value, DataLoader):
        collate = None if value.collate_fn is default_collate else value.collate_fn
        if collate is None:
            return _convert(value.dataset, name)
        return _dataset(value.dataset, name, collate)
    if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, Tensor | np.ndarray) for v in value):
        return TensorSplit(tensor(value[0], f"{name}: x"), target(tensor(value[1], f"{name}: y")))
    if isinstance(value, tuple | list) and len(value) == 2 and value[1] is None:
        value = value[0]
    if isinstance(value, Tensor | np.ndarray):
        return TensorSplit(tensor(value, f"{name}: x"))
    if isinstance(value, TensorDataset) and len(value.tensors) == 2:
        return TensorSplit(value.tensors[0], target(value.tensors[1]))
    if isinstance(value, TensorDataset) and len(value.tensors) == 1:
        return TensorSplit(value.tensors[0])
    if isinstance(value, TorchSubset):
        return _convert(value.dataset, name).subset(list(value.indices))
    return _dataset(value, name, None)


def _dataset(dataset: Any, name: str, collate: Any) -> Split:
    if isinstance(dataset, IterableDataset):
        raise DataError(f"{name} is an iterable data set: its samples cannot be drawn by index", _REMEDY)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")) or isinstance(dataset, str | dict):
        raise DataError(f"{name} is a {type(dataset).__name__}, not a data set", _REMEDY)
    return DatasetSplit(dataset, name=name, collate=collate)


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
