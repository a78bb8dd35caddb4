"""Samples become batches: how they are combined, and where a batch has its targets."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data._utils.collate import collate, default_collate_fn_map

from prunetaylor.core.errors import DataError

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
