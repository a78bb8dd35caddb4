"""A checkpoint's bytes become named tensors. The content shows what the file is, and none of its code runs."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from torch import Tensor

from prunetaylor.core.errors import CheckpointRefused, UsageError
from prunetaylor.core.json_file import read_json
from prunetaylor.core.results.inspection import CheckpointMetadata
from prunetaylor.core.text import neutral
from prunetaylor.network.checkpoint.huggingface.folder import is_index, is_model_folder, shards
from prunetaylor.network.checkpoint.metadata import FORMAT, decode
from prunetaylor.network.checkpoint.paths import RUN_FILE, find_checkpoint
from prunetaylor.network.checkpoint.refusal import refuse_failures, require_room
from prunetaylor.network.checkpoint.torch_format.descriptions import DTYPES, MOST_DIMENSIONS
from prunetaylor.network.checkpoint.torch_format.torch_file import LEGACY, TorchFile
from prunetaylor.network.checkpoint.unwrap import plain_names, unwrap

RUN_REPORT = "report.json"
MODEL_HASH = "model"  # the key of the file's hash in the report

_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to", "fetch the file: git lfs pull"),
    (b"\x89HDF", "an HDF5 file (Keras?)", "give a PyTorch checkpoint"),
    (b"\x1f\x8b", "compressed by gzip", "decompress it first"),
    (b"<", "a web page or XML, not a checkpoint", "download the file itself; this may be an error page"),
)
_SAVE = "save the network's weights with torch.save(model.state_dict(), PATH), or with safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Named tensors on the CPU and their origin. Tied names in our own files share one tensor."""

    path: Path
    form: str  # "state_dict", "training dict", "safetensors" or "prunetaylor"
    container: str  # "zip" or "legacy" (torch.save), or "safetensors"
    state: dict[str, Tensor]
    metadata: CheckpointMetadata | None  # None if prunetaylor did not write the file
    sha256: str  # of the file's bytes
    size: int  # bytes
    prefix_removed: str = ""  # wrappers' names taken off the parameter names: "module.", "_orig_mod."...
    notes: tuple[str, ...] = ()  # choices made while reading, one line each
    folder: Path | None = None  # a model's folder of Hugging Face, which describes its network
    named: str | None = None  # a training dict's bare 'arch' entry: decides between equal matches, nothing else


def read(path: str | Path) -> Checkpoint:
    """Read a checkpoint file, or the one in a run's folder.

    Raises UsageError (no such file, a directory without a run, not readable) and CheckpointRefused (code, damage, no
    weights, several networks, tensors that are quantised, NaN or infinite).
    """
    checkpoint = open_file(path)
    for name, tensor in checkpoint.state.items():
        bad = nonfinite(tensor)
        if bad:
            more = sum(nonfinite(t) > 0 for t in checkpoint.state.values()) - 1
            others = f"; {more} more tensors have such values too" if more else ""
            raise CheckpointRefused(
                f"{checkpoint.path}: {name!r} has NaN or infinite values ({bad} of {tensor.numel()}){others}",
                "the training diverged before this was saved; take an earlier checkpoint",
            )
    return checkpoint


def open_file(path: str | Path) -> Checkpoint:
    """Read a file without the check for NaN and infinite values, for inspection."""
    file = find_checkpoint(path)
    checkpoint = _open_shards(file) if is_index(file) else _open(file)
    if not Path(path).is_dir():
        return checkpoint
    folder = Path(path)
    described = folder if checkpoint.metadata is None and is_model_folder(folder) else None
    return replace(checkpoint, folder=described, notes=(*checkpoint.notes, *_check_run(folder, checkpoint.sha256)))


def _open(file: Path) -> Checkpoint:
    container = _container(file)
    with refuse_failures(file), file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        parts = _open_safetensors(file, size) if container == "safetensors" else _open_torch(file, stream, size)
        if not parts["state"]:
            raise CheckpointRefused(f"{file} contains no tensors", _SAVE)
        digest = sha256(file)
    return Checkpoint(path=file, container=container, sha256=digest, size=size, **parts)


def _open_shards(index: Path) -> Checkpoint:
    """Read the files that an index lists as one; its hash is that of their hashes."""
    parts = [_open(shard) for shard in shards(index)]
    state: dict[str, Tensor] = {}
    for part in parts:
        if twice := sorted(state.keys() & part.state.keys()):
            raise CheckpointRefused(
                f"{neutral(twice[0])!r} is in {part.path} and in another file of {index}", "copy the whole folder again"
            )
        state |= part.state
    return replace(
        parts[0],
        path=index,
        state=state,
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
        size=sum(part.size for part in parts),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def sha256(file: Path) -> str:
    """Return the hash of a file's bytes in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_run(folder: Path, digest: str) -> list[str]:
    """Return a note if the folder has no readable report; CheckpointRefused if its run wrote another file."""
    try:
        report = read_json(folder / RUN_REPORT)
    except FileNotFoundError:
        return []
    except (OSError, ValueError):
        return [f"{folder / RUN_REPORT} cannot be read: it is not known whether the run wrote this file"]
    hashes = report.get("hashes") if isinstance(report, dict) else None
    wrote = hashes.get(MODEL_HASH) if isinstance(hashes, dict) else None
    if wrote is not None and wrote != digest:
        raise CheckpointRefused(
            f"{folder / RUN_FILE} is not the file that the run in {folder} wrote: its sha256 is another",
            f"if that is meant, name the file instead of the folder: {shlex.quote(str(folder / RUN_FILE))}",
        )
    return []


def nonfinite(tensor: Tensor) -> int:
    """Return the number of NaN or infinite values; an attention mask (0 and -inf only) counts as none."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    values = tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 2 else tensor
    finite = values.isfinite()
    if finite.all():
        return 0
    if not values.is_complex() and bool(((values == 0) | (values == float("-inf"))).all()) and (values == 0).any():
        return 0
    return int(finite.numel() - finite.count_nonzero())


def _container(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            head = stream.read(64)
        size = file.stat().st_size
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", "check its permissions") from error
    if not head:
        raise CheckpointRefused(f"{file} is empty", "copy or download it again")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(LEGACY):
        return "legacy"
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return "safetensors"
    for start, what, remedy in _FOREIGN:
        if head.lstrip().startswith(start):
            raise CheckpointRefused(f"{file} is {what}", remedy)
    if head.startswith(b"\x80") and head[1:2] in b"\x02\x03\x04\x05" and size > 2:
        raise CheckpointRefused(f"{file} is a plain pickle, which can run any code; it was not opened", _SAVE)
    raise CheckpointRefused(f"{file} is not a checkpoint: neither a file of torch.save nor of safetensors", _SAVE)


def _open_torch(path: Path, stream: IO[bytes], size: int) -> dict[str, Any]:
    file = TorchFile(path, stream, size)
    contents, metadata = file.contents, None
    if isinstance(contents, Mapping) and contents.get("format") == FORMAT:
        metadata = decode({k: v for k, v in contents.items() if k != "state_dict"})
        contents = {"state_dict": contents.get("state_dict")}
    inner = unwrap(contents)
    state = {name: file.tensor(name, one) for name, one in inner.state.items()}
    file.check_rest()
    if metadata is not None:
        return {
            "state": state,
            "metadata": metadata,
            "form": "prunetaylor",
            "prefix_removed": inner.prefix_removed,
            "notes": file.notes,
        }
    named = contents.get("arch") if inner.path else None
    return {
        "state": state,
        "metadata": None,
        "form": "training dict" if inner.path else "state_dict",
        "prefix_removed": inner.prefix_removed,
        "notes": (*inner.notes, *file.notes),
        "named": named if isinstance(named, str) else None,
    }


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy in which every truth value is 0 or 1; a file's bytes may be others, which torch does not expect."""
    return tensor.view(torch.uint8).ne(0) if tensor.dtype == torch.bool else tensor.clone()


def _open_safetensors(file: Path, size: int) -> dict[str, Any]:
    require_room(file, size)
    with safe_open(file, framework="pt", device="cpu") as opened:
        header = opened.metadata() or {}
        # Copied: a tensor that is a view of the mapped file would change, or fault, with the file.
        state = {name: _copied(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118 (no iterator)
    for name, tensor in state.items():
        if tensor.dtype not in DTYPES or tensor.ndim > MOST_DIMENSIONS:
            raise CheckpointRefused(
                f"{file}: {name!r} has the type {tensor.dtype} and {tensor.ndim} dimensions",
                "save it in a plain type, such as float32",
            )
    if FORMAT not in header:
        state, prefix = plain_names(state)
        notes = (f"prefix {prefix!r} removed from the names",) if prefix else ()
        return {"state": state, "metadata": None, "form": "safetensors", "prefix_removed": prefix, "notes": notes}
    metadata = decode(json.loads(header[FORMAT]))
    for alias, name in metadata.tied.items():
        if name not in state:
            raise CheckpointRefused(
                f"{file}: {alias!r} is stored as {name!r}, which is missing", "write the file again"
            )
        state[alias] = state[name]
    return {"state": state, "metadata": metadata, "form": "prunetaylor"}
