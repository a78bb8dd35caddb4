"""Inspection of a checkpoint file without its network, and without running any of its code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from prunetaylor.core.results.inspection import Inspection, TensorInfo
from prunetaylor.network.checkpoint.read import nonfinite, open_file

_UNSIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def inspect_file(path: str | Path) -> Inspection:
    """Return the contents of a checkpoint, or of a run's folder.

    Raises UsageError (no such file) and CheckpointRefused, whose text says what the file is: a pickled module, a
    TorchScript archive, damaged. NaN and infinite values are counted, not refused.
    """
    checkpoint = open_file(path)
    first: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    infos = []
    for name, tensor in checkpoint.state.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        tied = first.setdefault(place, name) if tensor.numel() else name
        infos.append(_info(name, tensor, None if tied == name else tied))
    own = [t for t in infos if t.tied_to is None]
    return Inspection(
        path=checkpoint.path,
        form=checkpoint.form,
        container=checkpoint.container,
        bytes=checkpoint.size,
        sha256=checkpoint.sha256,
        tensors=tuple(infos),
        elements=sum(t.elements for t in own),
        nonzero=sum(t.nonzero for t in own),
        metadata=checkpoint.metadata,
        prefix_removed=checkpoint.prefix_removed,
        notes=checkpoint.notes,
    )


def _info(name: str, tensor: Tensor, tied_to: str | None) -> TensorInfo:
    values = tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 2 else tensor
    if values.dtype in _UNSIGNED:  # torch cannot count their zeros
        values = values.view(_UNSIGNED[values.dtype])
    return TensorInfo(
        name=name,
        shape=tuple(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        elements=tensor.numel(),
        nonzero=int(values.count_nonzero()),
        nonfinite=nonfinite(tensor),
        tied_to=tied_to,
    )
