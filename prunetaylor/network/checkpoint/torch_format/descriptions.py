"""Descriptions of the tensors in a file, checked before a byte of them is read or any memory is allocated.

A pickle of torch names rebuild functions and gives them a storage, an offset, a size and strides. The functions here
take the same arguments and return a description; one that no tensor can have raises Malformed. ``torch_file.py`` makes
tensors of descriptions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

MOST_DIMENSIONS = 32
_LARGEST = 1 << 60

_NAMES = """
bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64
complex32 complex64 complex128 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu
"""
DTYPES = frozenset(getattr(torch, name) for name in _NAMES.split() if hasattr(torch, name))
"""The types whose values can be counted and computed with. Packed and quantised ones cannot."""


class Malformed(ValueError):
    """The contents of a file are inconsistent."""


@dataclass(frozen=True, eq=False)
class Kind:
    """A class of storages; ``dtype`` is uint8 for untyped ones, and may be one that is not supported."""

    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Storage:
    """Bytes of the file by their key: ``numel`` elements of ``dtype``, from element ``start`` on."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Dense:
    """A strided tensor inside its storage, in elements of ``dtype``."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    conjugate: bool = False
    negative: bool = False

    @property
    def nbytes(self) -> int:
        """Return the bytes of its elements, as if none shared memory."""
        return math.prod(self.size) * self.dtype.itemsize

    @property
    def place(self) -> tuple[Any, ...]:
        """Return a value that is equal for tensors that are the same view of the same bytes."""
        storage = self.storage
        return (
            storage.key,
            storage.start,
            self.dtype,
            self.offset,
            self.size,
            self.stride,
            self.conjugate,
            self.negative,
        )


@dataclass(frozen=True, eq=False)
class Sparse:
    """A sparse tensor: its indices and values, which are dense, and its claimed size."""

    form: str  # torch's layout, "torch.sparse_coo"
    parts: tuple[Dense, ...]
    size: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of the values."""
        return self.parts[-1].dtype

    @property
    def nbytes(self) -> int:
        """Return the bytes of the dense tensor that it stands for."""
        return math.prod(self.size) * self.dtype.itemsize

    @property
    def place(self) -> tuple[Any, ...]:
        return (self.form, self.size, *(part.place for part in self.parts))


@dataclass(frozen=True, eq=False)
class Unusable:
    """A tensor that no network consists of; refused as a weight, ignored elsewhere."""

    why: str  # "is quantised"
    remedy: str


Described = Dense | Sparse | Unusable


@dataclass(frozen=True, eq=False)
class Opaque:
    """An object beside the weights that is not used here: a script's arguments, a device."""

    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """A function of the table; nothing else in a pickle can be called."""

    function: Callable[..., Any]


def whole(value: Any, what: str) -> int:
    """Return ``value`` if it is a whole number that a size can be; Malformed otherwise."""
    if type(value) is not int or not 0 <= value < _LARGEST:
        raise Malformed(f"{what} is {_shown(value)}")
    return value


def sizes(value: Any, what: str) -> tuple[int, ...]:
    """Return ``value`` as a tuple of sizes; Malformed if it is something else, or has too many dimensions."""
    if not isinstance(value, tuple | list):
        raise Malformed(f"{what} is {_shown(value)}")
    if len(value) > MOST_DIMENSIONS:
        raise Malformed(f"a tensor of {len(value)} dimensions")
    return tuple(whole(one, what) for one in value)


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any = False, hooks: Any = None, metadata: Any = None
) -> Described:
    if not isinstance(storage, Storage):
        raise Malformed("a tensor without a storage")
    return _dense(storage, storage.dtype, offset, size, stride, metadata)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Described:
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise Malformed("a tensor without a storage or a type")
    return _dense(storage, dtype, offset, size, stride, metadata)


def _dense(storage: Storage, dtype: torch.dtype, offset: Any, size: Any, stride: Any, metadata: Any) -> Described:
    start, shape, steps = whole(offset, "an offset"), sizes(size, "a size"), sizes(stride, "a stride")
    if len(shape) != len(steps):
        raise Malformed(f"a tensor of {len(shape)} dimensions with {len(steps)} strides")
    last = start + sum((n - 1) * step for n, step in zip(shape, steps, strict=True)) if all(shape) else start - 1
    if (last + 1) * dtype.itemsize > storage.nbytes:
        shown = "x".join(map(str, shape)) or "a scalar"
        raise Malformed(
            f"a tensor ({shown}, {_name(dtype)}) is larger than its storage of {storage.nbytes} bytes: "
            f"it ends at byte {(last + 1) * dtype.itemsize}"
        )
    if dtype not in DTYPES:
        return Unusable(f"has the type {_name(dtype)}", "save it in a plain type, such as float32")
    marks = metadata if isinstance(metadata, dict) else {}
    return Dense(storage, dtype, start, shape, steps, bool(marks.get("conj")), bool(marks.get("neg")))


def _sparse(form: Any, data: Any) -> Described:
    known = {"torch.sparse_coo": 2, **{f"torch.sparse_{one}": 3 for one in ("csr", "csc", "bsr", "bsc")}}
    if not isinstance(form, str) or form not in known or not isinstance(data, tuple):
        raise Malformed("a tensor with an unknown layout")
    count = known[form]
    parts = data[:count]
    if any(isinstance(part, Unusable) for part in parts):
        return next(part for part in parts if isinstance(part, Unusable))
    if len(data) not in (count + 1, count + 2) or not all(isinstance(part, Dense) for part in parts):
        raise Malformed("a sparse tensor without its indices and values")
    return Sparse(form, parts, sizes(data[count], "a size"))


def _parameter(data: Any, *_: Any) -> Described:
    if not isinstance(data, Described):
        raise Malformed("a parameter without a tensor")
    return data


def _from_type(function: Any, kind: Any, args: Any, state: Any) -> Described:
    """Return a tensor without the attributes of its class."""
    if not isinstance(function, Call) or not isinstance(args, tuple):
        raise Malformed("a tensor without a function that makes it")
    return _parameter(function.function(*args))


def _from_cpu(data: Any, dtype: Any, *_: Any) -> Described:
    """Return a tensor of another device (XLA) that was saved as one of the CPU."""
    tensor = _parameter(data)
    if isinstance(tensor, Dense) and tensor.dtype != dtype:
        return Unusable("is stored in another type", "move the network to the CPU before it is saved")
    return tensor


def _unusable(why: str, remedy: str) -> Call:
    return Call(lambda *_: Unusable(why, remedy))


_SAVE = "save the network's weights with torch.save(model.state_dict(), PATH)"

REBUILDERS: dict[str, Call] = {
    "_rebuild_tensor": Call(_tensor),
    "_rebuild_tensor_v2": Call(_tensor),
    "_rebuild_tensor_v3": Call(_tensor_v3),
    "_rebuild_sparse_tensor": Call(_sparse),
    "_rebuild_parameter": Call(_parameter),
    "_rebuild_parameter_with_state": Call(_parameter),
    "_rebuild_device_tensor_from_cpu_tensor": Call(_from_cpu),
    "_rebuild_device_tensor_from_numpy": _unusable("is of another device", "move the network to the CPU first"),
    "_rebuild_qtensor": _unusable("is quantised", "prune the floating-point checkpoint, then quantise"),
    "_rebuild_nested_tensor": _unusable("is a nested tensor", "save each of its tensors separately"),
    "_rebuild_meta_tensor_no_storage": _unusable("is on the meta device and has no values", _SAVE),
    "_rebuild_njt": _unusable("is a nested tensor", "save each of its tensors separately"),
    "_rebuild_wrapper_subclass": _unusable("is of a tensor class without values", _SAVE),
}
FROM_TYPE = Call(_from_type)


def viewed(storage: Storage, offset: Any, size: Any) -> Storage:
    """Return a part of a storage, given in its elements."""
    start, numel = whole(offset, "an offset"), whole(size, "a size")
    if start + numel > storage.numel:
        raise Malformed("a view is larger than its storage")
    return replace(storage, start=storage.start + start, numel=numel)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(value: Any) -> str:
    return str(value)[:40] if isinstance(value, int | float) else f"a {type(value).__name__}"
