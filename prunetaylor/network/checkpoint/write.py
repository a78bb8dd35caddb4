"""A network becomes a file with metadata: safetensors, or a torch file without code, written completely or
not at all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from prunetaylor.core.files import write_by_path, write_stream
from prunetaylor.network.checkpoint.metadata import FORMAT, encode

_FAILURES = (OSError, SafetensorError, RuntimeError)
"""What the writers of safetensors and torch raise when a file cannot be written."""


def write_model(
    path: str | Path,
    module: nn.Module,
    *,
    arch: str | None,
    args: Mapping[str, Any],
    data: Mapping[str, Any],
    masks: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Any] | None = None,
    named: bool = True,
) -> int:
    """Write ``module`` as safetensors with its metadata, and return the file's size in bytes.

    Tied tensors are stored once and named in the metadata. ``masks`` (True = keep) are recorded as counts, as the
    removed weights are the zeros. ``named``: the user named the path, which may then be a link.

    Raises OutputError (the file cannot be written; nothing remains) and UsageError (metadata that is not JSON).
    """
    tensors, tied = _stored(module)
    description = encode(arch=arch, args=args, data=data, masks=masks, tied=tied, extra=extra)
    metadata = {"format": "pt", FORMAT: json.dumps(description)}

    def write(temporary: Path) -> None:
        safetensors.torch.save_file(tensors, temporary, metadata)
        _order_metadata(temporary)

    return write_by_path(Path(path), write, named=named, failures=_FAILURES)


def _order_metadata(file: Path) -> None:
    """Order the metadata, so that the same network gives the same bytes: the library's order changes with the process.

    A safetensors file begins with 8 bytes, the length of its JSON header, in which trailing spaces mean nothing.
    """
    with file.open("r+b") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(ordered) <= length:
            opened.seek(8)
            opened.write(ordered.ljust(length))


def write_pt(
    path: str | Path,
    module: nn.Module,
    *,
    arch: str | None,
    args: Mapping[str, Any],
    data: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> int:
    """Write a file that ``torch.load(path, weights_only=True)`` opens, and return its size in bytes."""
    # Detached tensors, ties kept: torch.save stores a shared storage once.
    state = {k: v.detach().cpu() for k, v in _tensors(module).items()}
    description = encode(arch=arch, args=args, data=data, masks=None, tied={}, extra=extra)
    document = {**description, "state_dict": state}
    # to a stream: torch's own writer does not say why it fails
    return write_stream(Path(path), lambda stream: torch.save(document, stream), named=True, failures=_FAILURES)


def model_bytes(module: nn.Module) -> int:
    """Return the size in bytes of ``module`` as a safetensors file without metadata."""
    return len(safetensors.torch.save(_stored(module)[0], {"format": "pt"}))


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}


def _stored(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to write, none of which share memory, and {tied name: name that is stored}."""
    stored: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    seen: set[int] = set()
    for name, tensor in _tensors(module).items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, str(tensor.device))
        if tensor.numel() and place in first:
            tied[name] = first[place]
            continue
        first.setdefault(place, name)
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage().data_ptr()
        # Another view of a storage that is written already, or a part of one: the file takes whole tensors only.
        if storage in seen or own.untyped_storage().nbytes() != own.nbytes:
            own = own.clone(memory_format=torch.contiguous_format)
        seen.add(storage)
        stored[name] = own
    return stored, tied
