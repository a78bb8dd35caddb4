"""A pickle machine that cannot run code: it knows the instructions for data, and a closed table of names.

``pickletools`` takes the bytes apart. Whatever a pickle asks for, only functions of the table are called, and they make
descriptions (``descriptions.py``): no class is imported, no attribute is set, and no memory is allocated for mere
claims of the file. The number of instructions is bounded, and dictionary keys are plain, since hashing a nested one can
take forever.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import Any, Protocol

import torch

from prunetaylor.network.checkpoint.torch_format.descriptions import (
    FROM_TYPE,
    REBUILDERS,
    Call,
    Dense,
    Kind,
    Malformed,
    Opaque,
    Sparse,
    Storage,
    Unusable,
    sizes,
)

MOST_STEPS = 4_000_000
"""Instructions of one pickle. A network of a thousand tensors takes 30,000; each can take up to 250 bytes."""


MOST_COPIED = 1 << 28
"""Bytes, roughly, that calls copy: a call of five bytes could otherwise copy the same long list again and again."""


class AsksForCode(Exception):
    """The pickle names a class or function that is not in the table."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class TooLong(Exception):
    """The pickle has more instructions than are executed."""


class _NumpyType:
    """A stand-in for numpy's dtype, with its code and byte order."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = code if isinstance(code, str) else "", "<"

    def build(self, state: Any) -> None:
        self.order = ">" if isinstance(state, tuple) and len(state) > 1 and state[1] == ">" else "<"


def _number(dtype: Any, raw: Any) -> float | int | bool | None:
    """Return the value of a numpy scalar, or None for a kind that is not a plain number."""
    codes = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b", "u1": "B", "b1": "?"}
    code = codes.get(dtype.code) if isinstance(dtype, _NumpyType) else None
    content = raw.encode("latin1") if isinstance(raw, str) else raw
    if code is None or not isinstance(content, bytes) or struct.calcsize(f"<{code}") != len(content):
        return None
    value: float | int | bool = struct.unpack(dtype.order + code, content)[0]
    return value


def _mapping(pairs: Any = (), *_: Any) -> dict[Any, Any]:
    """Return an OrderedDict or Counter, whose entries mostly come later; Python 2 gave them as a list of pairs."""
    if isinstance(pairs, dict):
        return dict(pairs)
    if not isinstance(pairs, list | tuple) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        raise Malformed("a malformed dictionary")
    return {_key(k): v for k, v in pairs}


def _bytes(text: Any = b"", encoding: Any = "latin1") -> bytes:
    """Return bytes, which protocol 2 writes as text."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Malformed("malformed bytes")
    return text.encode("latin1")


def _set(items: Any = ()) -> set[Any]:
    if not isinstance(items, list | tuple):
        raise Malformed("a malformed set")
    return {_key(one) for one in items}


def _complex(*parts: Any) -> complex:
    if not all(isinstance(one, int | float) for one in parts):
        raise Malformed("a malformed complex number")
    return complex(*parts)


def _layout_name(name: Any) -> str:
    if not isinstance(name, str):
        raise Malformed("a malformed layout")
    return name


def _opaque(name: str) -> Call:
    return Call(lambda *_: Opaque(name))


_STORAGES = {
    "Double": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
    "Bool": "bool",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
    **{name: name.lower() for name in ("QInt8", "QInt32", "QUInt8", "QUInt4x2", "QUInt2x4")},
}
_TENSOR_CLASSES = "BFloat16 Bool Byte Char Double Float Half Int Long Short"


def _table() -> dict[str, Any]:
    """Return everything that a pickle may name."""
    table: dict[str, Any] = {
        "collections.OrderedDict": Call(_mapping),
        "collections.Counter": Call(_mapping),
        "_codecs.encode": Call(_bytes),
        "torch.serialization._get_layout": Call(_layout_name),
        "torch.Size": Call(lambda size=(): sizes(size, "a size")),
        "torch.device": _opaque("torch.device"),
        "argparse.Namespace": _opaque("argparse.Namespace"),
        "torch.Tensor": Opaque("torch.Tensor"),
        "torch.nn.parameter.Parameter": Opaque("torch.nn.Parameter"),
        "torch._tensor._rebuild_from_type_v2": FROM_TYPE,
        "torch.tensor._rebuild_from_type_v2": FROM_TYPE,
        "torch._dynamo.decorators._DimRange": _opaque("a range of sizes"),
        "torch.nested._internal.nested_tensor.NestedTensor": Opaque("torch.nested"),
        "torch.nested._internal.nested_tensor._rebuild_njt": REBUILDERS["_rebuild_njt"],
        "numpy.dtype": Call(_NumpyType),
        "numpy.core.multiarray.scalar": Call(_number),
        "numpy._core.multiarray.scalar": Call(_number),
    }
    for module in ("builtins", "__builtin__"):
        table |= {f"{module}.bytearray": Call(_bytes), f"{module}.set": Call(_set), f"{module}.complex": Call(_complex)}
    table |= {f"torch._utils.{name}": call for name, call in REBUILDERS.items()}
    table |= {str(one): one for one in vars(torch).values() if isinstance(one, torch.dtype)}
    table |= {str(one): Opaque(str(one)) for one in vars(torch).values() if isinstance(one, torch.qscheme)}
    for name in _TENSOR_CLASSES.split():
        for module in ("torch", "torch.cuda", "torch.sparse", "torch.cuda.sparse"):
            table[f"{module}.{name}Tensor"] = Opaque(f"{module}.{name}Tensor")
    for name, dtype in _STORAGES.items():
        for module in ("torch", "torch.cuda"):
            table[f"{module}.{name}Storage"] = Kind(getattr(torch, dtype))
    untyped = Kind(torch.uint8)
    return {**table, "torch.storage.UntypedStorage": untyped, "torch.UntypedStorage": untyped}


_TABLE = _table()
_MARK = object()
_PLAIN = (str, bytes, bool, int, float, type(None))
_INERT = (Dense, Sparse, Unusable, Opaque, Storage, Kind, torch.dtype)


class Stream(Protocol):
    """A source of bytes for ``pickletools``."""

    def read(self, count: int, /) -> bytes:
        """Read at most ``count`` bytes."""

    def readline(self) -> bytes:
        """Read to the end of a line."""

    def tell(self) -> int:
        """Return the position."""


def unpickle(stream: Stream, storage: Callable[[Any], Storage]) -> Any:
    """Return the value of the next pickle in ``stream``, which is left at its end.

    ``storage`` makes a storage of a persistent id. Raises AsksForCode, TooLong, Malformed, and whatever ``pickletools``
    raises.
    """
    machine = _Machine(storage)
    source: Any = stream  # pickletools needs no more of it than Stream has
    for step, (code, argument, _) in enumerate(pickletools.genops(source)):
        if step >= MOST_STEPS:
            raise TooLong
        if code.name == "STOP":
            break
        does = _INSTRUCTIONS.get(code.name)
        if does is None:
            raise Malformed(f"the pickle instruction {code.name}")
        does(machine, argument)
    return machine.pop()


class _Machine:
    """The stack and the memo of a pickle, and a method for each kind of instruction."""

    def __init__(self, storage: Callable[[Any], Storage]) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self._copied = 0
        self._storage = storage

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise Malformed("the pickle takes a value that it has not pushed")
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        at = next((i for i in range(len(self.stack) - 1, -1, -1) if self.stack[i] is _MARK), None)
        if at is None:
            raise Malformed("the pickle has no mark")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def last(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self.pop() for _ in range(count)]))

    def top(self, kind: type | tuple[type, ...], what: str) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise Malformed(f"the pickle uses something else as {what}")
        return self.stack[-1]

    def named(self, name: str) -> None:
        if name not in _TABLE:
            raise AsksForCode(name)
        self.push(_TABLE[name])

    def named_from_stack(self) -> None:
        module, name = self.last(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise Malformed("a name that is not text")
        self.named(f"{module}.{name}")

    def memorise(self, index: int | None) -> None:
        value = self.pop()
        self.push(value)
        self.memo[len(self.memo) if index is None else index] = value

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Malformed("the pickle recalls a value that it has not stored")
        self.push(self.memo[index])

    def call(self) -> None:
        function, arguments = self.last(2)
        if not isinstance(function, Call) or not isinstance(arguments, tuple):
            raise Malformed("the pickle calls something that is not a function")
        self._copied += sum(len(one) for one in arguments if isinstance(one, str | bytes))
        self._copied += sum(100 * len(one) for one in arguments if isinstance(one, tuple | list | dict))
        if self._copied > MOST_COPIED:
            raise Malformed("the pickle copies without end")
        self.push(function.function(*arguments))

    def build(self) -> None:
        """Set the state of a numpy type; the attributes of all other objects are ignored."""
        state = self.pop()
        target = self.top((dict, Opaque, _NumpyType, Dense, Sparse, Unusable), "an object")
        if isinstance(target, _NumpyType):
            target.build(state)

    def append(self, items: list[Any]) -> None:
        self.top(list, "a list").extend(items)

    def set(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise Malformed("a dictionary key without a value")
        target = self.top(dict, "a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def persistent(self) -> None:
        self.push(self._storage(self.pop()))


def _key(key: Any) -> Any:
    """Return ``key`` if hashing it is fast and collisions are rare, else an opaque object in its place."""
    flat = key if isinstance(key, tuple) and len(key) <= 8 else (key,)
    for one in flat:
        if not isinstance(one, (*_PLAIN, *_INERT)) or (type(one) is int and abs(one) >= 1 << 60):
            return Opaque(f"a key of type {type(key).__name__}")
    return key


_VALUES = """
BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINSTRING SHORT_BINSTRING
BINBYTES SHORT_BINBYTES BINBYTES8
"""
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_VALUES.split(), _Machine.push),
    "PROTO": lambda m, _: None,
    "FRAME": lambda m, _: None,
    "MARK": lambda m, _: m.push(_MARK),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.push(m.last(1)),
    "TUPLE2": lambda m, _: m.push(m.last(2)),
    "TUPLE3": lambda m, _: m.push(m.last(3)),
    "BINPUT": _Machine.memorise,
    "LONG_BINPUT": _Machine.memorise,
    "MEMOIZE": _Machine.memorise,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": lambda m, name: m.named(name.replace(" ", ".")),
    "STACK_GLOBAL": lambda m, _: m.named_from_stack(),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.since_mark()),
    "SETITEM": lambda m, _: m.set(list(m.last(2))),
    "SETITEMS": lambda m, _: m.set(m.since_mark()),
    "BINPERSID": lambda m, _: m.persistent(),
}
