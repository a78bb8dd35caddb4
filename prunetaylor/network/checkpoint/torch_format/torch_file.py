"""Files of torch.save, zip and legacy: what they hold is described first, and tensors are made of it one by one."""

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
from prunetaylor.network.checkpoint.torch_format.pickle_machine import unpickled

LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # torch.save's magic number, pickled
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MOST_PICKLE = 1 << 28
_ROOM = 1 << 29
_DEEPEST = 100
_AT_WORK = object()


class TorchFile:
    """An open file: ``held`` is what it holds, with descriptions in the place of tensors.

    Tensors that share a storage in the file share it here, too.
    """

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self._path, self._size = path, size
        self._bytes: dict[str, Tensor] = {}
        self._tensors: dict[tuple[Any, ...], Tensor] = {}
        self._asked = 0
        file.seek(0)
        legacy = file.read(len(LEGACY)) == LEGACY
        file.seek(0)
        self._container: _Legacy | _Zip = _Legacy(file, size) if legacy else _Zip(path, file, size)
        self.held = self._container.held
        self.container = self._container.name
        self.notes = self._container.notes

    def tensor(self, name: str, described: Described) -> Tensor:
        """The tensor on the CPU, dense.

        CheckpointRefused where it is of a kind that no network is made of, and where all that were asked for are far
        larger than the file: views and sparse tensors can claim any size.
        """
        if isinstance(described, Unusable):
            raise CheckpointRefused(f"{self._path}: {name!r} {described.why}", described.remedy)
        if described.place not in self._tensors:
            self._asked += described.nbytes
            if self._asked > 2 * self._size + _ROOM:
                raise CheckpointRefused(
                    f"{self._path}: the tensors up to {name!r} take {self._asked:,} bytes, and the file has "
                    f"{self._size:,}: they are sparse, or views that repeat the same values",
                    "save them as they are to be used, with tensor.to_dense() or tensor.contiguous()",
                )
            require_room(self._path, described.nbytes)
            made = self._dense(described) if isinstance(described, Dense) else self._from_sparse(described)
            self._tensors[described.place] = made
        return self._tensors[described.place]

    def values(self) -> Any:
        """Everything that the file holds, with tensors in their places. Malformed where it holds itself."""
        return self._values(self.held, 0, {})

    def check_rest(self) -> None:
        """Test the checksums of what was not read."""
        self._container.check_rest()

    def _values(self, held: Any, depth: int, done: dict[int, Any]) -> Any:
        if isinstance(held, Described):
            return self.tensor("a tensor", held)
        if not isinstance(held, dict | list | tuple):
            return held
        if id(held) not in done:
            done[id(held)] = _AT_WORK
            if depth > _DEEPEST:
                raise Malformed("it is nested too deeply")
            if isinstance(held, dict):
                found: Any = {key: self._values(value, depth + 1, done) for key, value in held.items()}
            else:
                found = type(held)(self._values(value, depth + 1, done) for value in held)
            done[id(held)] = found
        if done[id(held)] is _AT_WORK:
            raise Malformed("it holds itself")
        return done[id(held)]

    def _dense(self, one: Dense) -> Tensor:
        typed = self._stored(one.storage)[one.storage.start * one.storage.dtype.itemsize :]
        count = len(typed) // one.dtype.itemsize
        flat = typed[: count * one.dtype.itemsize]
        flat = flat.ne(0) if one.dtype == torch.bool else flat.view(one.dtype)
        found = flat.as_strided(one.size, one.stride, flat.storage_offset() + one.offset)
        found = torch.conj(found) if one.conjugate and found.is_complex() else found
        return -found if one.negative else found

    def _from_sparse(self, one: Sparse) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of some releases, about how young some layouts are
            return self._validated(one)

    def _validated(self, one: Sparse) -> Tensor:
        *indices, values = (self._dense(part) for part in one.parts)
        if one.layout == "torch.sparse_coo":
            made = torch.sparse_coo_tensor(indices[0], values, one.size, check_invariants=True)
        else:
            make: Any = torch.sparse_compressed_tensor  # its types in torch are wrong
            layout = getattr(torch, one.layout.removeprefix("torch."))
            made = make(*indices, values, one.size, layout=layout, check_invariants=True)
        return made.to_dense()

    def _stored(self, storage: Storage) -> Tensor:
        """All bytes of a storage, in this machine's byte order."""
        if storage.key not in self._bytes:
            require_room(self._path, self._container.size(storage.key))
            content = torch.empty(self._container.size(storage.key), dtype=torch.uint8)
            self._container.read_into(storage.key, content.numpy().data)
            self._bytes[storage.key] = self._container.ordered(content, storage.dtype)
        return self._bytes[storage.key]


class _Zip:
    """The form since torch 1.6: an archive with a pickle and one entry for each storage."""

    name = "zip"

    def __init__(self, path: Path, file: IO[bytes], size: int) -> None:
        self._archive = Archive(file, size)
        self._refuse_foreign(path)
        if self._archive.size("data.pkl") > _MOST_PICKLE:
            raise Malformed("its description is too large")
        self._big = "byteorder" in self._archive and self._archive.read("byteorder") == b"big"
        self.notes = () if self._archive.has_checksums else ("written without checksums: damage cannot be seen",)
        self.held = unpickled(io.BytesIO(self._archive.read("data.pkl")), self._storage)

    def size(self, key: str) -> int:
        return self._archive.size(f"data/{key}")

    def read_into(self, key: str, content: memoryview) -> None:
        self._archive.read_into(f"data/{key}", content)

    def ordered(self, content: Tensor, dtype: torch.dtype) -> Tensor:
        """``content`` in little-endian order."""
        each = dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize
        if not self._big or each == 1:
            return content
        return content[: len(content) // each * each].view(-1, each).flip(1).reshape(-1)

    def check_rest(self) -> None:
        self._archive.check_rest()

    def _storage(self, said: Any) -> Storage:
        found = _storage_of(said)
        if not 0 <= self.size(found.key) - found.nbytes < found.dtype.itemsize:
            raise Malformed(f"the storage {found.key!r} has {self.size(found.key)} bytes and claims {found.nbytes}")
        return found

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
    """The form before: five pickles, then each storage with its length before it. It has no checksums."""

    name = "legacy"
    notes: tuple[str, ...] = ()

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._claimed: dict[str, Storage] = {}
        self._places: dict[str, int] = {}
        stream = _Bounded(file, size)
        if unpickled(stream, _no_storage) != _MAGIC or unpickled(stream, _no_storage) != _PROTOCOL:
            raise Malformed("it has another protocol")
        unpickled(stream, _no_storage)  # about the machine that wrote it
        self.held = unpickled(stream, self._storage)
        keys = unpickled(stream, _no_storage)
        if not isinstance(keys, list) or set(self._claimed) - set(keys):
            raise Malformed("a storage is missing")
        at = file.tell()
        for key in keys:
            if key not in self._claimed or key in self._places:
                raise Malformed("a storage that no tensor has")
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

    def _storage(self, said: Any) -> Storage:
        if not isinstance(said, tuple) or len(said) != 6:
            raise Malformed("a storage that is none")
        *whole_one, view = said
        found = _storage_of(tuple(whole_one))
        first = self._claimed.setdefault(found.key, found)
        if (first.dtype, first.numel) != (found.dtype, found.numel):
            raise Malformed("a storage of two types or sizes")
        if view is None:
            return found
        if not isinstance(view, tuple) or len(view) != 3:
            raise Malformed("a view that is none")
        return viewed(found, view[1], view[2])


class _Bounded:
    """A stream that is never asked for more bytes than there are, whatever length is claimed."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size

    def read(self, count: int) -> bytes:
        return self._file.read(max(0, min(count, self._size - self._file.tell())))

    def readline(self) -> bytes:
        return self._file.readline(1 << 16)

    def tell(self) -> int:
        return self._file.tell()


def _no_storage(said: Any) -> Storage:
    raise Malformed("a tensor where none can be")


def _storage_of(said: Any) -> Storage:
    if not isinstance(said, tuple) or len(said) != 5 or said[0] not in ("storage", b"storage"):
        raise Malformed("a storage that is none")
    _, kind, key, _, numel = said
    if not isinstance(kind, Kind) or not isinstance(key, str):
        raise Malformed("a storage that is none")
    return Storage(key, kind.dtype, whole(numel, "a storage's size"))
