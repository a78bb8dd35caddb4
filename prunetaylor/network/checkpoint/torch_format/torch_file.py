"""Files of torch.save, zip and legacy: their contents are described first, then tensors are made one by one."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from prunetaylor.core.errors import CheckpointRefused
from prunetaylor.network.checkpoint.refusal import require_room
from prunetaylor.network.checkpoint.torch_format.archive import Archive
from prunetaylor.network.checkpoint.torch_format.descriptions import (
    Dense,
    Described,
    Kind,
    Malformed,
    Sparse,
    Storage,
    Unusable,
    viewed,
    whole,
)
from prunetaylor.network.checkpoint.torch_format.pickle_machine import unpickle

LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.save's magic number, pickled
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MOST_PICKLE = 1 << 28
_ROOM = 1 << 29
_DEEPEST = 100
_IN_PROGRESS = object()


class TorchFile:
    """An open file: ``contents`` is its value, with descriptions in place of tensors.

    Tensors that share a storage in the file share it here too.
    """

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self._path, self._size = path, size
        self._bytes: dict[str, Tensor] = {}
        self._tensors: dict[tuple[Any, ...], Tensor] = {}
        self._requested = 0
        file.seek(0)
        legacy = file.read(len(LEGACY)) == LEGACY
        file.seek(0)
        self._container: _Legacy | _Zip = _Legacy(file, size) if legacy else _Zip(path, file, size)
        self.contents = self._container.contents
        self.container = self._container.name
        self.notes = self._container.notes

    def tensor(self, name: str, described: Described) -> Tensor:
        """Return the tensor on the CPU, dense.

        Raises CheckpointRefused if no network consists of such tensors, or if all requested tensors are far larger than
        the file: views and sparse tensors can claim any size.
        """
        if isinstance(described, Unusable):
            raise CheckpointRefused(f"{self._path}: {name!r} {described.why}", described.remedy)
        if described.place not in self._tensors:
            self._requested += described.nbytes
            if self._requested > 2 * self._size + _ROOM:
                raise CheckpointRefused(
                    f"{self._path}: the tensors up to {name!r} take {self._requested:,} bytes, and the file has "
                    f"{self._size:,}: they are sparse, or views that repeat the same values",
                    "save them as they are to be used, with tensor.to_dense() or tensor.contiguous()",
                )
            require_room(self._path, described.nbytes)
            made = self._dense(described) if isinstance(described, Dense) else self._from_sparse(described)
            self._tensors[described.place] = made
        return self._tensors[described.place]

    def values(self) -> Any:
        """Return everything in the file, with tensors in their places. Malformed if it contains itself."""
        return self._values(self.contents, 0, {})

    def check_rest(self) -> None:
        """Verify the checksums of everything that was not read."""
        self._container.check_rest()

    def _values(self, contents: Any, depth: int, finished: dict[int, Any]) -> Any:
        if isinstance(contents, Described):
            return self.tensor("a tensor", contents)
        if not isinstance(contents, dict | list | tuple):
            return contents
        if id(contents) not in finished:
            finished[id(contents)] = _IN_PROGRESS
            if depth > _DEEPEST:
                raise Malformed("it is nested too deeply")
            if isinstance(contents, dict):
                values: Any = {key: self._values(inner, depth + 1, finished) for key, inner in contents.items()}
            else:
                values = type(contents)(self._values(inner, depth + 1, finished) for inner in contents)
            finished[id(contents)] = values
        if finished[id(contents)] is _IN_PROGRESS:
            raise Malformed("it contains itself")
        return finished[id(contents)]

    def _dense(self, one: Dense) -> Tensor:
        typed = self._stored(one.storage)[one.storage.start * one.storage.dtype.itemsize :]
        count = len(typed) // one.dtype.itemsize
        flat = typed[: count * one.dtype.itemsize]
        flat = flat.ne(0) if one.dtype == torch.bool else flat.view(one.dtype)
        tensor = flat.as_strided(one.size, one.stride, flat.storage_offset() + one.offset)
        tensor = torch.conj(tensor) if one.conjugate and tensor.is_complex() else tensor
        return -tensor if one.negative else tensor

    def _from_sparse(self, one: Sparse) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of some releases, about how young some layouts are
            return self._validated(one)

    def _validated(self, one: Sparse) -> Tensor:
        *indices, values = (self._dense(part) for part in one.parts)
        if one.form == "torch.sparse_coo":
            made = torch.sparse_coo_tensor(indices[0], values, one.size, check_invariants=True)
        else:
            make: Any = torch.sparse_compressed_tensor  # its types in torch are wrong
            torch_layout = getattr(torch, one.form.removeprefix("torch."))
            made = make(*indices, values, one.size, layout=torch_layout, check_invariants=True)
        return made.to_dense()

    def _stored(self, storage: Storage) -> Tensor:
        """Return all bytes of a storage, in this machine's byte order."""
        if storage.key not in self._bytes:
            require_room(self._path, self._container.size(storage.key))
            content = torch.empty(self._container.size(storage.key), dtype=torch.uint8)
            self._container.read_into(storage.key, content.numpy().data)
            self._bytes[storage.key] = self._container.ordered(content, storage.dtype)
        return self._bytes[storage.key]


class _Zip:
    """The format since torch 1.6: an archive with a pickle and an entry for each storage."""

    name = "zip"

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self._archive = Archive(file, size)
        self._refuse_foreign(path)
        if self._archive.size("data.pkl") > _MOST_PICKLE:
            raise Malformed("its description is too large")
        self._big = "byteorder" in self._archive and self._archive.read("byteorder") == b"big"
        self.notes = () if self._archive.has_checksums else ("written without checksums: damage cannot be seen",)
        self.contents = unpickle(io.BytesIO(self._archive.read("data.pkl")), self._storage)

    def size(self, key: str) -> int:
        return self._archive.size(f"data/{key}")

    def read_into(self, key: str, content: memoryview) -> None:
        self._archive.read_into(f"data/{key}", content)

    def ordered(self, content: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``content`` in little-endian order."""
        each = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
        if not self._big or each == 1:
            return content
        return content[: len(content) // each * each].view(-1, each).flip(1).reshape(-1)

    def check_rest(self) -> None:
        self._archive.check_rest()

    def _storage(self, persistent_id: Any) -> Storage:
        storage = _storage_of(persistent_id)
        if not 0 <= self.size(storage.key) - storage.nbytes < storage.dtype.itemsize:
            raise Malformed(
                f"the storage {storage.key!r} has {self.size(storage.key)} bytes and claims {storage.nbytes}"
            )
        return storage

    def _refuse_foreign(self, path: Path) -> None:
        names = {name.rpartition("/")[2] for name in self._archive.names}
        if "constants.pkl" in names:
            raise CheckpointRefused(
                f"{path} is a TorchScript archive: its code would have to run",
                "save the weights of the network it was made from: torch.save(model.state_dict(), PATH)",
            )
        if "data.pkl" not in names:
            numpy = names and all(name.endswith(".npy") for name in names)
            kind = "a NumPy .npz" if numpy else "a zip archive of another program"
            raise CheckpointRefused(f"{path} is {kind}, no checkpoint", "give a file of torch.save or of safetensors")


class _Legacy:
    """The earlier format: five pickles, then each storage after its length, without checksums."""

    name = "legacy"
    notes: tuple[str, ...] = ()

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._claimed: dict[str, Storage] = {}
        self._places: dict[str, int] = {}
        stream = _Bounded(file, size)
        if unpickle(stream, _no_storage) != _MAGIC or unpickle(stream, _no_storage) != _PROTOCOL:
            raise Malformed("it has another protocol")
        unpickle(stream, _no_storage)  # about the machine that wrote it
        self.contents = unpickle(stream, self._storage)
        keys = unpickle(stream, _no_storage)
        if not isinstance(keys, list) or set(self._claimed) - set(keys):
            raise Malformed("a storage is missing")
        at = file.tell()
        for key in keys:
            if key not in self._claimed or key in self._places:
                raise Malformed("a storage without a tensor")
            file.seek(at)
            if file.read(8) != struct.pack("<q", self._claimed[key].numel):
                raise Malformed("a storage has another length than its tensors claim")
            self._places[key] = at + 8
            at += 8 + self._claimed[key].nbytes
            if at > size:
                raise Malformed(f"a storage ends at byte {at:,}, and the file has {size:,}")

    def size(self, key: str) -> int:
        return self._claimed[key].nbytes

    def read_into(self, key: str, content: memoryview) -> None:
        self._file.seek(self._places[key])
        if self._file.readinto(content) != len(content):  # type: ignore[attr-defined]
            raise Malformed("a storage ends too early")

    def ordered(self, content: Tensor, dtype: torch.dtype) -> Tensor:
        return content

    def check_rest(self) -> None:
        pass

    def _storage(self, persistent_id: Any) -> Storage:
        if not isinstance(persistent_id, tuple) or len(persistent_id) != 6:
            raise Malformed("a malformed storage")
        *whole_one, view = persistent_id
        storage = _storage_of(tuple(whole_one))
        first = self._claimed.setdefault(storage.key, storage)
        if (first.dtype, first.numel) != (storage.dtype, storage.numel):
            raise Malformed("a storage of two types or sizes")
        if view is None:
            return storage
        if not isinstance(view, tuple) or len(view) != 3:
            raise Malformed("a malformed view")
        return viewed(storage, view[1], view[2])


class _Bounded:
    """A stream that never reads more bytes than the file has, whatever length is claimed."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        return self._file.read(max(0, min(count, self._size - self._file.tell())))

    def readline(self) -> bytes:
        return self._file.readline(1 << 16)

    def tell(self) -> int:
        return self._file.tell()


def _no_storage(persistent_id: Any) -> Storage:
    raise Malformed("a tensor in an unexpected place")


def _storage_of(entry: Any) -> Storage:
    if not isinstance(entry, tuple) or len(entry) != 5 or entry[0] not in ("storage", b"storage"):
        raise Malformed("a malformed storage")
    _, kind, key, _, numel = entry
    if not isinstance(kind, Kind) or not isinstance(key, str):
        raise Malformed("a malformed storage")
    return Storage(key, kind.dtype, whole(numel, "a storage's size"))
